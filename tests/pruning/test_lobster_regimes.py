"""LobsterPruning on networks that users have, however they are trained."""

import importlib
import itertools
from functools import partial

import pytest
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.plugins import MixedPrecision

from lightning_psp import PSPCallback
from lightning_psp.pruning import LobsterPruning, sparsity
from tests.support import either_lightning
from tests.support.either_lightning import NAMES, classifier_of
from tests.support.pruning.networks import NETWORKS, effective_weights
from tests.support.pruning.training import Compiled, CompiledWhole, Pruned, TwoOptimizers, adamw, loader_for
from tests.support.small import quiet_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step.. before `optimizer.step"),
    pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback, but saving"),
    pytest.mark.filterwarnings("ignore:Swapping scheduler"),
    # torch's own, where a compiled part reads what the part before a graph break made
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]
TOLERANCE = 0.05
momentum = partial(torch.optim.SGD, lr=0.02, momentum=0.9, weight_decay=1e-3)


class Looked(Pruned):
    """Looks at the weights that its callback prunes, and tries them out when a validation has ended."""

    def __init__(self, network, optimizer=None):
        super().__init__(network, optimizer)
        self.pruning = LobsterPruning(lam=1e-3, tolerance=TOLERANCE, patience=3, min_improvement=1.0)
        self.tried = []

    def look(self, place):
        weights = effective_weights(self)
        for name, mask in self.pruning.masks.items():
            if not mask.all():
                self.seen.append((place, weights[name][~mask].abs().max().item()))

    def on_validation_end(self):
        if len(self.pruning.history) > len(self.tried):
            network = getattr(self.network, "_orig_mod", self.network)
            with self.trainer.precision_plugin.val_step_context():
                losses = [self.loss(batch) for batch in loader_for(network)]
            self.tried.append(float(sum(losses) / len(losses)))


class ByHand(TwoOptimizers, Looked):
    """Looks between two optimisers, too."""


class Unwrapped(ByHand):
    """By optimisers whose steps the trainer does not count."""

    def optimizers(self):
        return super().optimizers(use_pl_optimizer=False)


class LookedCompiled(Compiled, Looked):
    """Looks at weights of a compiled network."""


class LookedCompiledWhole(CompiledWhole, Looked):
    """Looks at weights of a compiled module."""


def loss_scaling():
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))


REGIMES = {
    "momentum and weight decay": (Looked, momentum, {}),
    "AdamW": (Looked, adamw(), {}),
    "AdamW foreach": (Looked, adamw(foreach=True), {}),
    "AdamW fused": (Looked, adamw(fused=True), {}),
    "two optimisers": (ByHand, momentum, {}),
    "steps that the trainer does not count": (Unwrapped, momentum, {}),
    "compiled": (LookedCompiled, adamw(), {}),
    "compiled whole": (LookedCompiledWhole, adamw(), {}),
    "accumulation": (Looked, adamw(), {"accumulate_grad_batches": 2}),
    "clipping": (Looked, adamw(), {"gradient_clip_val": 0.1}),
    "bf16": (Looked, adamw(), {"precision": "bf16-mixed"}),
    "fp16": (Looked, momentum, {"plugins": loss_scaling}),
    "validation in mid-epoch": (Looked, adamw(), {"val_check_interval": 2}),
}


def check(module, *others, epochs=8, rel=1e-6, **settings):
    """Trains on data that are learned by heart: a network that has learned nothing can do without its weights."""
    pruning, network = module.pruning, getattr(module.network, "_orig_mod", module.network)
    precision = {} if "plugins" in settings else {"precision": "32-true"}
    settings = {name: [value()] if name == "plugins" else value for name, value in settings.items()}
    trainer = quiet_trainer(*others, pruning, max_epochs=epochs, **{"precision": None, **precision, **settings})
    trainer.fit(module, loader_for(network), loader_for(network))
    assert pruning.history
    assert pruning.history[0].threshold > 0
    assert all(step.loss_after <= (1 + TOLERANCE) * step.loss_before for step in pruning.history)
    assert all(step.evaluations <= 15 for step in pruning.history)
    assert [step.loss_after for step in pruning.history] == pytest.approx(module.tried, rel=rel)
    shares = [step.sparsity for step in pruning.history]
    assert all(one <= other for one, other in itertools.pairwise(shares))
    assert sparsity(pruning.masks).network == shares[-1] > 0
    assert [(place, largest) for place, largest in module.seen if largest != 0] == []
    assert {"validation step", "at the end"} <= {place for place, _ in module.seen}
    weights = effective_weights(module)
    for name, mask in pruning.masks.items():
        assert (weights[name][~mask] == 0).all(), name


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "resnet18"])
def test_networks(name):
    torch.manual_seed(0)
    check(Looked(NETWORKS[name](), adamw()))


@pytest.mark.slow
# Its first loss is that of a network that has learned nothing from a few steps of noise.
@pytest.mark.filterwarnings("ignore:LobsterPruning. 'val_loss' fell from")
def test_resnet18():
    torch.manual_seed(0)
    check(Looked(NETWORKS["resnet18"](), momentum), epochs=5, rel=1e-4)


@pytest.mark.parametrize("name", REGIMES)
def test_regimes(name):
    torch.manual_seed(0)
    kind, optimizer, settings = REGIMES[name]
    network = NETWORKS["lenet300" if optimizer is momentum else "lstm"]()
    check(kind(network, optimizer), **settings)


def test_beside_the_penalty():
    torch.manual_seed(0)
    check(Looked(NETWORKS["lenet300"](), adamw()), PSPCallback(lam=1e-2, entropy=()))


def test_stochastic_weight_averaging():
    torch.manual_seed(0)
    averaging = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=3, annealing_epochs=1)
    check(Looked(NETWORKS["lenet300"](), adamw()), averaging)


@pytest.mark.skipif(not hasattr(callbacks, "EMAWeightAveraging"), reason="a later version of Lightning has it")
def test_moving_averages():
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="a callback has averages of weights validated, which the search does without"):
        check(Looked(NETWORKS["lenet300"](), adamw()), callbacks.EMAWeightAveraging(decay=0.5))


@pytest.mark.parametrize("name", NAMES)
def test_either_lightning(name):
    importlib.import_module(name)
    torch.manual_seed(0)
    pruning = LobsterPruning(lam=1e-2, tolerance=TOLERANCE, patience=1, min_improvement=1.0)
    module = classifier_of(name)().double()
    trainer = either_lightning.quiet_trainer(name, pruning, max_epochs=5)
    trainer.fit(module, either_lightning.loader(), either_lightning.loader(2, seed=1))
    assert len(pruning.history) > 1
    assert sparsity(module).network == pruning.history[-1].sparsity > 0.1
    assert "pruning/sparsity" in trainer.callback_metrics
