"""Pruned weights in averages of weights, and in what other callbacks see and save."""

import copy

import pytest
import torch
from lightning.pytorch import Callback, callbacks
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint, StochasticWeightAveraging
from torch import nn

from lightning_psp.pruning import MaskedTraining, magnitude_masks
from tests.support.pruning.networks import NETWORKS
from tests.support.pruning.training import Pruned, assert_held, fit, masks_for, sgd

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


class Growing(MaskedTraining):
    """Prunes further at the end of the first epoch, as gradual pruning does."""

    def __init__(self, masks, later):
        super().__init__(masks)
        self.later = later

    def on_validation_end(self, trainer, pl_module):
        if trainer.current_epoch == 1 and not trainer.sanity_checking:
            pl_module.masks = self.later
            self.hold(pl_module, self.later)


class KeepsAverage(Callback):
    """Exponential averages that somebody has written, in the module while it is validated and saved."""

    def __init__(self):
        self.average = None

    def on_train_batch_end(self, trainer, pl_module, *_):
        current = pl_module.network.state_dict()
        average = self.average or {name: value.clone() for name, value in current.items()}
        self.average = {name: average[name] * 0.9 + value * 0.1 for name, value in current.items()}

    def swap(self, trainer, pl_module):
        if self.average is not None:
            current = {name: value.clone() for name, value in pl_module.network.state_dict().items()}
            pl_module.network.load_state_dict(self.average)
            self.average = current

    on_validation_start = on_validation_end = on_train_end = swap


class AveragesAtTheEnd(Pruned):
    """Puts averages into itself, when all callbacks have had their say."""

    def on_train_start(self):
        self.average = {name: value.clone() for name, value in self.network.state_dict().items()}

    def on_train_epoch_end(self):
        for name, value in self.network.state_dict().items():
            self.average[name].lerp_(value, 0.5)

    def on_validation_epoch_start(self):
        if not self.trainer.sanity_checking:
            self.current = {name: value.clone() for name, value in self.network.state_dict().items()}
            self.network.load_state_dict(self.average)

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            self.network.load_state_dict(self.current)

    def on_train_end(self):
        self.network.load_state_dict(self.average)

    def on_fit_end(self):
        self.look("at the end")


AVERAGING = {
    "SWA": lambda: StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=1),
    "EMA by hand": KeepsAverage,
}
if hasattr(callbacks, "WeightAveraging"):
    AVERAGING["averages"] = callbacks.WeightAveraging
if hasattr(callbacks, "EMAWeightAveraging"):
    AVERAGING["EMA"] = lambda: callbacks.EMAWeightAveraging(decay=0.9)
    AVERAGING["EMA from a later epoch on"] = lambda: callbacks.EMAWeightAveraging(
        decay=0.9, update_every_n_steps=0, update_starting_at_epoch=2
    )


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("name", AVERAGING)
def test_averaged_weights(name, order, batch_norm, tmp_path):
    """Also of weights that were pruned when the averages had them already; and in what is saved."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    if batch_norm:
        network.insert(1, nn.BatchNorm2d(4))
    module = Pruned(network, sgd(momentum=0.9))
    masks = masks_for(module, 0.5)
    holding = Growing(masks, magnitude_masks(module, sparsity=0.8))
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer = fit(module, *[holding, AVERAGING[name]()][::order], saving, max_epochs=4, enable_checkpointing=True)
    assert_held(module)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    for path in tmp_path.glob("*.ckpt"):
        checkpoint = torch.load(path, weights_only=False)  # Lightning 2.4 keeps a function of SWA there
        saved = checkpoint["state_dict"]
        held = checkpoint["callbacks"]["Growing"]["masks"]
        assert torch.equal(held["network.0.weight"], masks["network.0.weight"]) == (path.name in ("epoch=0.ckpt",))
        for parameter, mask in held.items():
            assert (saved[parameter][~mask] == 0).all(), (path, parameter)
            assert (saved[parameter][mask] != 0).all()


def test_averages_of_the_module_itself():
    torch.manual_seed(0)
    module = AveragesAtTheEnd(NETWORKS["lenet300"](), sgd(momentum=0.9))
    masks = masks_for(module, 0.5)
    fit(module, Growing(masks, magnitude_masks(module, sparsity=0.8)), max_epochs=3)
    assert_held(module)


def test_the_looks_see_averages_that_are_not_held():
    """Else the test above tests nothing."""
    torch.manual_seed(0)
    module = Pruned(NETWORKS["lenet300"]())
    masks = masks_for(module, 0.5)

    class Forgets(Growing):
        def on_validation_start(self, *_):
            """Does nothing."""

        on_validation_batch_start = on_validation_start

    fit(module, Forgets(masks, magnitude_masks(module, sparsity=0.8)), KeepsAverage(), max_epochs=3)
    assert [largest for place, largest in module.seen if place == "validation step"][-1] > 0


# --- the order of callbacks ------------------------------------------------------------------------------------------


def test_order_of_callbacks(tmp_path):
    class Notes(Callback):
        def on_fit_start(self, trainer, pl_module):
            orders.append([type(each).__name__ for each in trainer.callbacks])

        on_train_start = on_fit_start

    orders = []
    module = Pruned(NETWORKS["lenet300"]())
    given = Notes(), MaskedTraining(masks_for(module)), KeepsAverage(), ModelCheckpoint(tmp_path)
    trainer = fit(module, *given, enable_checkpointing=True)
    own = ["Notes", "KeepsAverage", "MaskedTraining", "ModelCheckpoint"]
    assert [[name for name in order if name in own] for order in orders] == [own, own]
    assert {id(each) for each in given} <= {id(each) for each in trainer.callbacks}
    assert len(trainer.callbacks) == len({id(each) for each in trainer.callbacks})


def test_weights_are_pruned_before_other_callbacks_start(tmp_path):
    """A learning-rate search is one."""

    class Looks(Callback):
        def on_fit_start(self, trainer, pl_module):
            pl_module.look("start")

    module = Pruned(NETWORKS["lenet300"]())
    fit(module, Looks(), MaskedTraining(masks_for(module)), KeepsAverage())
    assert module.seen[0] == ("start", 0)


@pytest.mark.filterwarnings("ignore:.*lr_find")
def test_a_search_for_the_learning_rate(tmp_path):
    class WithRate(Pruned):
        lr = 0.05

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)

    class Looks(Callback):
        def on_train_start(self, trainer, pl_module):
            states.append(copy.deepcopy(pl_module.state_dict()))

    torch.manual_seed(0)
    module, states = WithRate(NETWORKS["lenet300"]()), []
    masks = masks_for(module)
    start = {name: value * 1.5 for name, value in module.state_dict().items()}
    search = LearningRateFinder(num_training_steps=10)
    holding = MaskedTraining(masks, rewind_to=start)
    fit(module, search, holding, Looks(), default_root_dir=tmp_path, enable_checkpointing=True)
    assert search.optimal_lr is not None
    assert_held(module)
    assert len(states) == 1
    assert all(torch.equal(states[0][name], value * masks.get(name, 1)) for name, value in start.items())
