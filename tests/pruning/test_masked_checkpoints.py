"""Masks in checkpoints, in resumed fits and after crashes."""

import copy
import pickle

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint, OnExceptionCheckpoint

from lightning_psp.pruning import MaskedTraining, random_masks_like
from tests.support.pruning.networks import NETWORKS
from tests.support.pruning.training import (
    Pruned,
    Starts,
    assert_held,
    assert_state,
    fit,
    hooks,
    lenet300,
    loader_for,
    masked,
    masks_for,
    sgd,
)
from tests.support.small import traces

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:`.fit.ckpt_path=None.` was called without a model"),
    pytest.mark.filterwarnings("ignore:.fit.ckpt_path=.last.. is set"),
]


def saving(folder, **settings):
    return ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1, **settings)


def assert_saved(path, masks):
    checkpoint = torch.load(path, weights_only=True)
    assert_state(checkpoint["callbacks"]["MaskedTraining"]["masks"], masks)
    for name, mask in masks.items():
        assert mask.dtype == torch.bool
        assert (checkpoint["state_dict"][name][~mask] == 0).all()
    return checkpoint


def test_checkpoints_need_no_plugin(tmp_path):
    module = lenet300()
    names = list(module.state_dict())
    fit(module, MaskedTraining(module.masks), saving(tmp_path), enable_checkpointing=True)
    paths = list(tmp_path.glob("*.ckpt"))
    assert len(paths) == 6
    for path in paths:
        checkpoint = assert_saved(path, module.masks)
        assert list(checkpoint["state_dict"]) == names
        plain = lenet300(seed=1)
        plain.load_state_dict(checkpoint["state_dict"])
    assert_state(plain.state_dict(), torch.load(path, weights_only=True)["state_dict"])


@pytest.mark.parametrize("rewind_to", [None, "random", "state dict"])
def test_a_resumed_training_equals_an_uninterrupted_one(rewind_to, tmp_path):
    def train(seed, checkpoint=None, epochs=3):
        module = lenet300(seed)
        state = {name: value.add(seed) for name, value in module.state_dict().items()}
        arguments = {"random": {"rewind_to": "random", "seed": 4}, "state dict": {"rewind_to": state}}.get(
            rewind_to, {}
        )
        module.masks = masks
        saved = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        fit(
            module,
            MaskedTraining(masks, **arguments),
            saved,
            max_epochs=epochs,
            enable_checkpointing=True,
            ckpt_path=checkpoint,
        )
        assert_held(module)
        return module.state_dict()

    masks = lenet300().masks
    expected = train(0)
    assert_state(train(1, tmp_path / "epoch=0.ckpt"), expected)


def test_masks_of_the_checkpoint_are_others(tmp_path):
    module = lenet300()
    fit(module, MaskedTraining(module.masks), saving(tmp_path), max_epochs=1, enable_checkpointing=True)
    other = lenet300()
    path = next(tmp_path.glob("*.ckpt"))
    with pytest.raises(ValueError, match=r"the masks of the checkpoint, but those of network.fc1.weight, network.fc2"):
        fit(other, MaskedTraining(random_masks_like(module.masks, seed=0)), ckpt_path=path)
    del other.masks["network.fc1.weight"]
    with pytest.raises(ValueError, match=r"but those of network.fc1.weight are others"):
        fit(other, MaskedTraining(other.masks), ckpt_path=path)


def test_a_checkpoint_of_a_training_without_masks(tmp_path):
    module = lenet300()
    fit(module, saving(tmp_path), max_epochs=1, enable_checkpointing=True)
    path = tmp_path / "step=3.ckpt"
    resumed = lenet300()
    initial = {name: value + 1 for name, value in resumed.state_dict().items()}
    with pytest.warns(UserWarning, match="does not rewind the weights, for this fit goes on from a checkpoint"):
        fit(resumed, MaskedTraining(resumed.masks, rewind_to=initial), Starts(), ckpt_path=path)
    assert_held(resumed)
    assert all(value.abs().mean() < 0.5 for value in resumed.state_dict().values())


class Unwrapped(Pruned):
    """Its optimiser's steps are not counted by the trainer."""

    def __init__(self, seed):
        torch.manual_seed(seed)
        super().__init__(NETWORKS["lenet300"](), sgd())
        self.automatic_optimization = False
        masks_for(self)

    def training_step(self, batch, batch_index):
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


def test_nothing_is_rewound_twice_where_the_trainer_counts_no_steps(tmp_path):
    def train(seed, checkpoint=None, max_epochs=2):
        module = Unwrapped(seed)
        module.masks = masks
        callback = MaskedTraining(masks, rewind_to=initial)
        # a checkpoint callback saves nothing where no step is counted
        saving = LambdaCallback(
            on_train_epoch_end=lambda trainer, _: trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")
        )
        trainer = fit(module, callback, saving, max_epochs=max_epochs, ckpt_path=checkpoint)
        assert trainer.global_step == 0
        return trainer, module

    masks, initial = Unwrapped(0).masks, Unwrapped(2).state_dict()
    _, expected = train(0)
    _, resumed = train(1, tmp_path / "0.ckpt")
    assert_state(resumed.state_dict(), expected.state_dict())
    trainer, further = train(0, max_epochs=1)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(further, loader_for(further.network), loader_for(further.network, 1, seed=1))
    assert_state(further.state_dict(), expected.state_dict())


def test_a_second_fit_goes_on_with_the_weights():
    module = lenet300()
    initial = copy.deepcopy(module.state_dict())
    callback, starts = MaskedTraining(module.masks, rewind_to=initial), Starts()
    trainer = fit(module, callback, starts, max_epochs=1)
    trained = copy.deepcopy(module.state_dict())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader_for(module.network), loader_for(module.network, 1, seed=1))
    assert_state(starts.state, trained)
    fit(module, callback, starts)  # another trainer's
    assert_state(starts.state, masked(initial, module.masks))


# --- crashes ---------------------------------------------------------------------------------------------------------


class Crash(Callback):
    """In the middle of a step: the weights have moved, the masks were not applied yet."""

    def on_train_start(self, trainer, pl_module):
        optimizer = trainer.optimizers[0]
        step = optimizer.step

        def crash(*arguments, **settings):
            step(*arguments, **settings)
            if trainer.global_step >= 1:
                with torch.no_grad():
                    for parameter in pl_module.parameters():
                        parameter.add_(1.0)
                raise RuntimeError("crash")

        optimizer.step = crash


EXCEPTION_CHECKPOINTS = {"on exception": lambda folder: OnExceptionCheckpoint(folder, "crashed")}
if "save_on_exception" in ModelCheckpoint.__init__.__code__.co_varnames:
    EXCEPTION_CHECKPOINTS["model checkpoint"] = lambda folder: ModelCheckpoint(folder, save_on_exception=True)


@pytest.mark.parametrize("kind", EXCEPTION_CHECKPOINTS)
@pytest.mark.parametrize("order", [1, -1])
def test_a_checkpoint_made_by_an_exception(kind, order, tmp_path):
    module = lenet300()
    given = [EXCEPTION_CHECKPOINTS[kind](tmp_path), MaskedTraining(module.masks), Crash()]
    with pytest.raises(RuntimeError, match="crash"):
        fit(module, *given[::order], enable_checkpointing=True)
    (path,) = tmp_path.glob("*.ckpt")
    checkpoint = assert_saved(path, module.masks)
    assert checkpoint["global_step"] >= 1
    assert checkpoint["state_dict"]["network.fc1.weight"][module.masks["network.fc1.weight"]].mean() > 0.5


def test_a_crash_in_a_step_leaves_a_pruned_module():
    module = lenet300()
    with pytest.raises(RuntimeError, match="crash"):
        fit(module, MaskedTraining(module.masks), Crash())
    assert module.network.fc1.weight[module.masks["network.fc1.weight"]].mean() > 0.5
    module.look("after the crash")
    assert module.seen[-1] == ("after the crash", 0)


@pytest.mark.parametrize("event", ["setup", "on_fit_start", "on_train_batch_start", "on_before_optimizer_step", None])
def test_nothing_is_left_behind(event):
    class Crashing(Callback):
        """Crashes at an event."""

    def crash(*_, **__):
        raise RuntimeError("crash")

    if event is not None:
        setattr(Crashing, event, crash)
    module, callback = lenet300(), MaskedTraining(lenet300().masks)
    assert hooks() == (0, 0)
    trainer = fit(lenet300(), max_epochs=1)
    before = traces(trainer, module)
    if event is None:
        trainer = fit(module, callback, Crashing())
    else:
        with pytest.raises(RuntimeError, match="crash"):
            fit(module, callback, Crashing())
    assert hooks() == (0, 0)
    found = traces(trainer, module)
    assert found["hooks"] == before["hooks"]
    assert found["attributes"] == before["attributes"]
    assert found["parameter hooks"] == before["parameter hooks"]
    module.seen.clear()
    fit(module, callback)  # the same callback once more
    assert_held(module)


def test_a_copy_in_the_middle_of_a_training():
    class Copying(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            copies.extend([copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))])
            weight = pl_module.network.fc1.weight
            with torch.no_grad():
                weight.add_(1.0)
                for each in copies:
                    each.on_validation_start(trainer, pl_module)
                assert (weight != 0).all()  # a copy holds nothing in this training
                weight.sub_(1.0)

    copies = []
    module = lenet300()
    callback = MaskedTraining(module.masks)
    fit(module, callback, Copying())
    assert hooks() == (0, 0)
    for each in copies:
        assert_state(each.masks, module.masks)
    other = lenet300()
    fit(other, copies[0])
    assert_held(other)


def test_the_masks_are_those_that_were_given():
    module = lenet300()
    given = {name: mask.clone() for name, mask in module.masks.items()}
    callback = MaskedTraining(given)
    for mask in given.values():
        mask.fill_(True)
    fit(module, callback)
    assert_held(module)
