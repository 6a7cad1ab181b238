"""The gradient that the decay reads, in every kind of training, against trainings written out in plain PyTorch."""

from contextlib import nullcontext

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, parametrizations

from lightning_psp import PSPCallback
from lightning_psp.pruning import LobsterPruning
from tests.support.small import loader, quiet_trainer

LAM, STEPS, BROKEN = 0.05, 6, 3


class Network(nn.Module):
    """A frozen layer, one that no loss reaches, and two that train."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(6, 8)
        self.unused = nn.Linear(8, 8)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 3, bias=False)
        self.frozen.requires_grad_(False)

    def forward(self, features):
        return self.second(torch.tanh(self.first(torch.tanh(self.frozen(features)))))


def loss_of(network, batch):
    """Large enough for gradients above and below 1."""
    return 6 * functional.cross_entropy(network(batch[0]), batch[1])


class Module(LightningModule):
    """Trains it, and breaks one step where it is told to."""

    breaks = False

    def __init__(self, optimizer):
        super().__init__()
        torch.manual_seed(0)
        self.network = Network().double()
        self.optimizer = optimizer

    def training_step(self, batch, batch_index):
        loss = loss_of(self.network, batch)
        return loss * float("inf") if self.breaks and batch_index == BROKEN else loss

    def validation_step(self, batch, batch_index):
        self.log("val_loss", loss_of(self.network, batch))

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


class ClipsByItself(Module):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        clip_grad_norm_(self.parameters(), 0.2)


class ClipsInHook(Module):
    def on_before_optimizer_step(self, optimizer):
        clip_grad_norm_(self.parameters(), 0.2)


class Breaks(Module):
    breaks = True


class ByHand(Module):
    """Two optimisers, each with gradients of the other's parameters beside its own."""

    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.automatic_optimization = False

    def training_step(self, batch, batch_index):
        for optimizer in self.optimizers():
            self.network.zero_grad()
            self.manual_backward(loss_of(self.network, batch))
            optimizer.step()

    def configure_optimizers(self):
        return [self.optimizer(self.network.first.parameters()), self.optimizer(self.network.second.parameters())]


class Unwrapped(ByHand):
    def optimizers(self):
        return super().optimizers(use_pl_optimizer=False)


class ScalesByItself(ByHand):
    """By a scaler of its own, of which the trainer knows nothing."""

    def on_fit_start(self):
        self.scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)

    def training_step(self, batch, batch_index):
        for optimizer in self.optimizers(use_pl_optimizer=False):
            self.network.zero_grad()
            self.manual_backward(self.scaler.scale(loss_of(self.network, batch)))
            self.scaler.step(optimizer)
        self.scaler.update()


class ScaledLoss(MixedPrecision):
    """The scaled loss of fp16 training without its rounding, so that errors show."""

    def __init__(self):
        super().__init__("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=65536.0))

    def autocast_context_manager(self):
        return nullcontext()


def decay(network, gradients):
    """The definition, for the weights of the network's linear layers."""
    with torch.no_grad():
        for name, gradient in gradients.items():
            if name.endswith("weight"):
                weight = network.get_parameter(name)
                weight.copy_(torch.where(gradient.abs() < 1, weight - LAM * weight * (1 - gradient.abs()), weight))


def gradients_of(network):
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def written_out(optimizer, accumulate=1, clip=None, breaks=False):
    """The network after a training in plain PyTorch."""
    network = Module(optimizer).network
    made = optimizer(network.parameters())
    batches = list(loader(STEPS))
    for step in range(0, STEPS, accumulate):
        network.zero_grad()
        for batch in batches[step : step + accumulate]:
            (loss_of(network, batch) / accumulate).backward()
        if breaks and step == BROKEN:
            continue
        gradients = gradients_of(network)
        if clip is not None:
            clip(network.parameters())
        made.step()
        decay(network, gradients)
    return network


def by_hand_written_out(optimizer):
    network = Module(optimizer).network
    parts = {"first": optimizer(network.first.parameters()), "second": optimizer(network.second.parameters())}
    for batch in loader(STEPS):
        for name, made in parts.items():
            network.zero_grad()
            loss_of(network, batch).backward()
            own = {key: gradient for key, gradient in gradients_of(network).items() if key.startswith(name)}
            made.step()
            decay(network, own)
    return network


def train(module, *callbacks, pruning=None, **settings):
    if "plugins" in settings:
        settings["precision"] = None
    trainer = quiet_trainer(pruning or LobsterPruning(lam=LAM), *callbacks, **settings)
    trainer.fit(module, loader(STEPS), loader(1, seed=1))
    return module.network


def assert_equal(network, expected):
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(network.get_parameter(name), parameter, rtol=1e-10, atol=1e-12)


def sgd(**settings):
    return lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01, **settings)


def nesterov(**settings):
    """Without weight decay torch works in the gradients of many tensors at once."""
    return lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, **settings)


class WorksInGradients(torch.optim.SGD):
    """As optimisers of other libraries may."""

    def step(self, closure=None):
        loss = None if closure is None else closure()
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                parameter.grad.mul_(0.5)
        super().step()
        return loss


class LetsGoOfGradients(torch.optim.SGD):
    """To save memory."""

    def step(self, closure=None):
        loss = None if closure is None else closure()
        super().step()
        self.zero_grad()
        return loss


def adamw(**settings):
    return lambda parameters: torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.1, **settings)


OPTIMIZERS = {
    "SGD": sgd(),
    "SGD, one tensor after another": sgd(foreach=False),
    "SGD foreach": sgd(foreach=True),
    "SGD fused": sgd(fused=True),
    "SGD maximising": sgd(maximize=True),
    "Nesterov": nesterov(),
    "Nesterov foreach": nesterov(foreach=True),
    "works in its gradients": lambda parameters: WorksInGradients(parameters, lr=0.1),
    "lets go of its gradients": lambda parameters: LetsGoOfGradients(parameters, lr=0.1),
    "AdamW": adamw(),
    "AdamW foreach": adamw(foreach=True),
    "AdamW fused": adamw(fused=True),
}


def by_norm(parameters):
    clip_grad_norm_(parameters, 0.2)


def by_value(parameters):
    clip_grad_value_(parameters, 0.05)


# Kind of module, settings of the trainer, and those of the training that is written out.
REGIMES = {
    "accumulation": (Module, {"accumulate_grad_batches": 3}, {"accumulate": 3}),
    "clipping by norm": (Module, {"gradient_clip_val": 0.2}, {"clip": by_norm}),
    "clipping by value": (
        Module,
        {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"},
        {"clip": by_value},
    ),
    "clipping and accumulation": (
        Module,
        {"gradient_clip_val": 0.2, "accumulate_grad_batches": 2},
        {"clip": by_norm, "accumulate": 2},
    ),
    "own clipping": (ClipsByItself, {}, {"clip": by_norm}),
    "clipping in a hook": (ClipsInHook, {}, {"clip": by_norm}),
    "validation after each step": (Module, {"val_check_interval": 1}, {}),
}
SCALED = {
    "plain": (Module, {}, {}),
    "clipping": (Module, {"gradient_clip_val": 0.2}, {"clip": by_norm}),
    "accumulation": (Module, {"accumulate_grad_batches": 2}, {"accumulate": 2}),
    "a skipped step": (Breaks, {}, {"breaks": True}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name):
    network = train(Module(OPTIMIZERS[name]))
    assert_equal(network, written_out(OPTIMIZERS[name]))


@pytest.mark.parametrize("name", REGIMES)
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW fused"])
def test_regimes(name, optimizer):
    kind, settings, written = REGIMES[name]
    network = train(kind(OPTIMIZERS[optimizer]), **settings)
    assert_equal(network, written_out(OPTIMIZERS[optimizer], **written))


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_scaled_losses(name, optimizer):
    kind, settings, written = SCALED[name]
    network = train(kind(OPTIMIZERS[optimizer]), plugins=[ScaledLoss()], **settings)
    assert_equal(network, written_out(OPTIMIZERS[optimizer], **written))


@pytest.mark.parametrize("name", ["plain", "accumulation", "a skipped step"])
@pytest.mark.parametrize("optimizer", ["SGD fused", "AdamW fused"])
def test_optimizers_that_unscale_by_themselves(name, optimizer):
    kind, settings, written = SCALED[name]
    network = train(kind(OPTIMIZERS[optimizer]), plugins=[ScaledLoss()], **settings)
    assert_equal(network, written_out(OPTIMIZERS[optimizer], **written))


@pytest.mark.parametrize("name", ["SGD", "AdamW fused"])
def test_manual_optimisation_with_two_optimisers(name):
    network = train(ByHand(OPTIMIZERS[name]))
    assert_equal(network, by_hand_written_out(OPTIMIZERS[name]))


@pytest.mark.parametrize("name", ["SGD", "Nesterov foreach", "works in its gradients", "lets go of its gradients"])
def test_steps_that_the_trainer_does_not_take(name):
    network = train(Unwrapped(OPTIMIZERS[name]))
    assert_equal(network, by_hand_written_out(OPTIMIZERS[name]))


@pytest.mark.parametrize("name", ["SGD", "AdamW fused", "SGD fused"])
def test_a_scaler_of_the_users(name):
    network = train(ScalesByItself(OPTIMIZERS[name]))
    assert_equal(network, by_hand_written_out(OPTIMIZERS[name]))


def test_what_has_no_gradient_does_not_shrink():
    before = Module(sgd()).network
    network = train(Module(sgd()))
    assert torch.equal(network.unused.weight, before.unused.weight)
    assert torch.equal(network.frozen.weight, before.frozen.weight)


def test_the_chosen_parameters_shrink():
    chosen = LobsterPruning(lam=LAM, include=["network.*"], exclude=["*second*"])
    network = train(Module(sgd()), pruning=chosen)
    without = train(Module(sgd()), pruning=LobsterPruning(lam=0))
    of_all = train(Module(sgd()))
    assert not torch.equal(network.second.weight, of_all.second.weight)
    assert network.first.weight.norm() < 0.95 * without.first.weight.norm()
    assert list(chosen.masks) == [f"network.{name}.weight" for name in ("frozen", "unused", "first")]


def test_the_gradient_has_the_penalty_in_it():
    strength = 0.5
    expected = Module(sgd()).network
    made = sgd()(expected.parameters())
    for batch in loader(STEPS):
        expected.zero_grad()
        first = expected.first(torch.tanh(expected.frozen(batch[0])))
        logits = expected.second(torch.tanh(first))
        # the potentials of the frozen layer are constants
        penalty = (first.square().mean() + logits.square().mean()) / 2
        (6 * functional.cross_entropy(logits, batch[1]) + strength * penalty).backward()
        gradients = gradients_of(expected)
        made.step()
        decay(expected, gradients)
    assert_equal(train(Module(sgd()), PSPCallback(lam=strength)), expected)


def test_weight_norm_shrinks_the_direction():
    def network():
        torch.manual_seed(0)
        return nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 3)).double()

    module, expected = Module(sgd()), network()
    module.network = network()
    made = sgd()(expected.parameters())
    for batch in loader(STEPS):
        expected.zero_grad()
        loss_of(expected, batch).backward()
        gradients = gradients_of(expected)
        made.step()
        direction = "0.parametrizations.weight.original1"
        decay(expected, {"2.weight": gradients["2.weight"]})
        with torch.no_grad():
            v, g = expected.get_parameter(direction), gradients[direction].abs()
            v.copy_(torch.where(g < 1, v - LAM * v * (1 - g), v))
    assert_equal(train(module), expected)


class Fails(Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == 2:
            raise RuntimeError("crash")


def test_nothing_is_left_after_a_crash():
    pruning = LobsterPruning(lam=LAM)
    with pytest.raises(RuntimeError, match="crash"):
        train(Module(sgd()), Fails(), pruning=pruning, gradient_clip_val=0.2)
    module = Module(sgd())
    weight = module.network.first.weight
    for optimizer in (sgd()([weight]), sgd()(module.parameters())):
        before = weight.detach().clone()
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        assert weight.norm() > (1 - LAM / 2) * before.norm()
    # and the callback trains another module
    assert_equal(train(Module(sgd()), pruning=pruning), written_out(sgd()))


def test_weights_in_half_precision_need_a_larger_share():
    module = Module(sgd())
    with pytest.raises(
        ValueError, match=r"`lam` to be 0 or at least 0.0039.* 'network.frozen.weight' in torch.bfloat16"
    ):
        train(module, pruning=LobsterPruning(lam=1e-4), precision="bf16-true")
    train(Module(sgd()), pruning=LobsterPruning(lam=0), precision="bf16-true")
