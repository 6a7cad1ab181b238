"""Pruned weights are 0 wherever they can be looked at, however the network is trained."""

from contextlib import suppress

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_psp.pruning import LobsterPruning, MaskedTraining
from tests.support.pruning.networks import NETWORKS, effective_weights
from tests.support.pruning.training import (
    Compiled,
    CompiledWhole,
    Pruned,
    TwoOptimizers,
    adamw,
    assert_held,
    fit,
    masks_for,
    pruned_without_masks,
    sgd,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`"),
    # torch's own, where a compiled part reads what the part before a graph break made
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


class OwnOptimizer(TwoOptimizers):
    """Torch's own optimiser, of which Lightning knows nothing."""

    def on_fit_start(self):
        self.own = [super(TwoOptimizers, self).configure_optimizers()]

    def optimizers(self):
        return self.own

    def configure_optimizers(self):
        return None


class Failing(TwoOptimizers):
    """Catches the failure of a step, and takes it in another way."""

    def training_step(self, batch, batch_index):
        failing = Fails(self.parameters(), lr=0.1)
        with suppress(ArithmeticError):
            failing.step()
        super().training_step(batch, batch_index)


class Fails(torch.optim.SGD):
    def step(self, closure=None):
        raise ArithmeticError


class Looping(torch.optim.SGD):
    """Takes its step through another's."""

    def step(self, closure=None):
        super().step()
        return super().step(closure)


def lbfgs(parameters):
    return torch.optim.LBFGS(parameters, lr=0.1, max_iter=4, line_search_fn="strong_wolfe")


OPTIMIZERS = {
    "SGD": sgd(momentum=0.9, nesterov=True),
    "SGD foreach": sgd(momentum=0.9, foreach=True),
    "SGD fused": sgd(momentum=0.9, fused=True),
    "AdamW": adamw(),
    "AdamW foreach": adamw(foreach=True),
    "AdamW fused": adamw(fused=True),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.1),
    "LBFGS": lbfgs,
    "own step": lambda parameters: Looping(parameters, lr=0.05, momentum=0.9),
}
# Kind of module, and settings of the trainer.
REGIMES = {
    "two optimisers": (TwoOptimizers, {}),
    "an optimiser of the user's": (OwnOptimizer, {}),
    "steps that fail": (Failing, {}),
    "compiled": (Compiled, {}),
    "compiled whole": (CompiledWhole, {}),
    "accumulation": (Pruned, {"accumulate_grad_batches": 2}),
    "clipping": (Pruned, {"gradient_clip_val": 0.1}),
    "clipping by value": (Pruned, {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}),
    "bf16": (Pruned, {"precision": "bf16-mixed"}),
    "bf16 true": (Pruned, {"precision": "bf16-true"}),
    "validation in mid-epoch": (Pruned, {"val_check_interval": 1}),
}


def half_precision(init_scale):
    return {"plugins": MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=init_scale))}


def check(module, **settings):
    masks = masks_for(module)
    before = effective_weights(module)
    fit(module, MaskedTraining(masks), **settings)
    assert_held(module)
    for name, weight in effective_weights(module).items():
        assert (weight[~masks[name]] == 0).all()
        assert weight.isfinite().all()
        assert not torch.equal(weight, (before[name] * masks[name]).to(weight.dtype)), name


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "resnet18"])
def test_networks(name):
    torch.manual_seed(0)
    check(Pruned(NETWORKS[name](), adamw()))


@pytest.mark.slow
def test_resnet18():
    torch.manual_seed(0)
    check(Pruned(NETWORKS["resnet18"]()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name):
    torch.manual_seed(0)
    check(Pruned(NETWORKS["weight norm"](), OPTIMIZERS[name]))


@pytest.mark.parametrize("name", REGIMES)
def test_regimes(name):
    torch.manual_seed(0)
    kind, settings = REGIMES[name]
    check(kind(NETWORKS["lstm"]()), **settings)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("init_scale", [2.0**10, 2.0**40])
def test_half_precision_with_steps_that_are_skipped(fused, init_scale):
    torch.manual_seed(0)
    module = Pruned(NETWORKS["lenet300"](), sgd(momentum=0.9, fused=fused))
    masks = masks_for(module)
    settings = half_precision(init_scale)
    scaler = settings["plugins"].scaler
    fit(module, MaskedTraining(masks), max_epochs=8, **settings)
    assert_held(module)
    assert (scaler.get_scale() < init_scale) == (init_scale == 2.0**40)


def test_what_comes_after_a_step_comes_once():
    """Also where a step is taken in parts, and after one that failed in the batch before."""

    class Counts(MaskedTraining):
        def after_step(self, optimizer):
            counts[type(optimizer)] = counts.get(type(optimizer), 0) + 1

    class Once(Failing):
        def training_step(self, batch, batch_index):
            if batch_index == 0:
                return super().training_step(batch, batch_index)
            return super(Failing, self).training_step(batch, batch_index)

    counts = {}
    fit(module := Pruned(NETWORKS["lenet300"](), OPTIMIZERS["own step"]), Counts(masks_for(module)))
    assert counts == {Looping: 6}
    fit(module := Once(NETWORKS["lenet300"](), sgd()), Counts(masks_for(module)), max_epochs=1)
    assert counts == {Looping: 6, torch.optim.SGD: 4}


def test_an_optimiser_that_tells_nobody_of_its_steps():
    class Own:
        """What Lightning asks of an optimiser."""

        param_groups, defaults, state = ({"params": [], "lr": 0.1},), {}, {}

        def step(self, closure=None):
            return closure()

        def zero_grad(self, set_to_none=True):
            """There are no gradients."""

        def state_dict(self):
            return {}

        def load_state_dict(self, state_dict):
            """There is no state."""

    module = Pruned(NETWORKS["lenet300"](), lambda parameters: Own())
    with pytest.raises(NotImplementedError, match="MaskedTraining is not told of the steps of Own, which is no"):
        fit(module, MaskedTraining(masks_for(module)))


def test_parameters_that_take_the_place_of_others():
    class Replaces(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            layer = pl_module.network.fc1
            (group, *_) = trainer.optimizers[0].param_groups
            group["params"] = [parameter for parameter in group["params"] if parameter is not layer.weight]
            layer.weight = nn.Parameter(torch.ones_like(layer.weight))
            trainer.optimizers[0].add_param_group({"params": [layer.weight]})

    torch.manual_seed(0)
    module = Pruned(NETWORKS["lenet300"](), adamw())
    masks = masks_for(module)
    fit(module, MaskedTraining(masks), Replaces(), max_epochs=3, limit_val_batches=0)
    assert_held(module, ("training step", "after a batch"))
    assert (module.network.fc1.weight[masks["network.fc1.weight"]] != 0).all()


@pytest.mark.parametrize("name", ["SGD", "LBFGS"])
def test_the_looks_see_weights_that_are_not_held(name):
    """Else the tests here test nothing."""
    torch.manual_seed(0)
    module = Pruned(NETWORKS["lenet300"](), OPTIMIZERS[name])
    pruned_without_masks(module)
    fit(module)
    assert [largest for place, largest in module.seen if place == "validation step"][1] > 0


@pytest.mark.gpu
# PyTorch puts the weights of a recurrent layer together for cuDNN in other types than bf16, and cuDNN says so.
@pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk of memory")
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("name", ["lenet5", "weight norm", "lstm"])
def test_on_a_gpu(name, precision, fused):
    torch.manual_seed(0)
    check(Pruned(NETWORKS[name](), adamw(fused=fused)), precision=precision, accelerator="gpu", devices=1)


def test_its_arguments_are_shown():
    mask = {"fc.weight": torch.ones(2, 2, dtype=torch.bool)}
    shown = "MaskedTraining(masks=<tensors: 1>, rewind_to='random', seed=3)"
    assert repr(MaskedTraining(mask, rewind_to="random", seed=3)) == shown
    assert repr(MaskedTraining(mask, rewind_to=mask)) == shown.replace("'random', seed=3", "<tensors: 1>, seed=None")
    assert repr(LobsterPruning(patience=3)).startswith(
        "LobsterPruning(lam=0.0001, tolerance=0.05, patience=3, monitor="
    )
