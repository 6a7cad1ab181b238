"""Models made, called and changed in unusual ways: same layers, same gradient."""

import copy
import io
import pickle
from types import MethodType

import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch import Callback
from lightning.pytorch.strategies import Strategy
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from lightning_psp import PSPCallback, psp_penalty, record_potentials
from tests.support.followed import LAM, Followed, assert_same, mean_square, total
from tests.support.small import BATCH, CLASSES, FEATURES, Classifier, loader, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
LAYERS = {"first", "second", "third"}


def seeded(kind=Followed, *arguments):
    torch.manual_seed(0)
    return kind(*arguments).double()


def fit(module, *callbacks, batches=2, **settings):
    trainer = quiet_trainer(PSPCallback(lam=LAM), *callbacks, **settings)
    trainer.fit(module, loader(batches))
    return trainer


def layers(trainer):
    return {key.removeprefix("psp_z2_train/") for key in trainer.callback_metrics if key.startswith("psp_z2_train/")}


# --- how a model is made ---------------------------------------------------------------------------------------------


class MadeLate(Followed):
    """Its layers are made where Lightning asks for it."""

    def __init__(self):
        super().__init__()
        del self.first, self.second, self.third

    def configure_model(self):
        self.first, self.second, self.third = nn.Linear(FEATURES, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)


class Lazy(Followed):
    """The sizes of its layers are not known before the first step."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.LazyLinear(8), nn.LazyLinear(8), nn.LazyLinear(CLASSES)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.filterwarnings("ignore:A layer with UninitializedParameter")
@pytest.mark.parametrize("kind", [MadeLate, Lazy])
def test_models_made_late(kind):
    module = seeded(kind)
    trainer = fit(module)
    module.check(steps=2)
    assert layers(trainer) == LAYERS


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_lazy_convolution():
    class Images(Followed):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.LazyConv2d(3, 2), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(CLASSES))
            del self.first, self.second, self.third

        def forward(self, features):
            return self.net(features.reshape(BATCH, 1, 2, 3))

        def on_after_backward(self):
            Classifier.on_after_backward(self)
            features, labels = self.batch
            conv, _, _, head = self.net
            with torch.enable_grad():
                z = functional.conv2d(features.reshape(BATCH, 1, 2, 3), conv.weight, conv.bias)
                out = head(z.clamp(min=0).flatten(1))
                loss = functional.cross_entropy(out, labels) + LAM * (mean_square(z) + mean_square(out)) / 2
                self.expected.append(torch.autograd.grad(loss, list(self.parameters())))

    module = seeded(Images)
    trainer = fit(module)
    module.check(steps=2)
    assert layers(trainer) == {"net.0", "net.3"}


class Wrapped(Followed):
    """A LightningModule that trains another one."""

    def __init__(self):
        super().__init__()
        self.inner = Classifier()
        del self.first, self.second, self.third, self.relu

    def forward(self, features):
        return self.inner(features)

    def on_after_backward(self):
        Classifier.on_after_backward(self)
        with torch.enable_grad():
            self.expected.append(torch.autograd.grad(total(self.inner, self.batch), list(self.parameters())))


class StepOfAnother(Wrapped):
    """The inner module's own training step is the step."""

    def training_step(self, batch, batch_index):
        self.batch = batch
        self.inner.log = self.log
        return self.inner.training_step(batch, batch_index)


@pytest.mark.parametrize("kind", [Wrapped, StepOfAnother])
def test_a_lightning_module_within_another(kind):
    module = seeded(kind)
    trainer = fit(module)
    module.check(steps=2)
    assert layers(trainer) == {f"inner.{layer}" for layer in LAYERS}


# --- weights that are computed ---------------------------------------------------------------------------------------


class Softened(nn.Module):
    def forward(self, weight):
        return functional.softplus(weight) - torch.sigmoid(weight)


REPARAMETRISED = {
    "weight norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "own": lambda layer: parametrize.register_parametrization(layer, "weight", Softened()),
}


@pytest.mark.parametrize("how", REPARAMETRISED)
def test_weights_that_are_functions_of_parameters(how):
    module = seeded()
    for layer in (module.first, module.second, module.third):
        REPARAMETRISED[how](layer)
    trainer = fit(module)
    module.check(steps=2)
    assert layers(trainer) == LAYERS


WEIGHTS = {
    "joined": lambda first, second: torch.cat([first, second]),
    "stacked": lambda first, second: torch.stack([first, second]).sum(0),
    "ordered": lambda first, second: torch.cumsum(first, 0),
    "normalised": lambda first, second: first / first.norm(dim=1, keepdim=True),
    "softmax": lambda first, second: first.softmax(1),
    "triangular": lambda first, second: first.tril(),
    "outer": lambda first, second: torch.outer(first[0], second[0]),
    "exponential": lambda first, second: torch.linalg.matrix_exp(first - first.mT),
    "spectrum": lambda first, second: torch.fft.rfft(first).real,
}


@pytest.mark.parametrize("how", WEIGHTS)
def test_nonlinearities_of_what_parameters_alone_make(how):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.out = nn.Linear(3, 4), nn.Linear(4, 2)
            self.parts = nn.ParameterList([torch.randn(4, 4), torch.randn(4, 4)])

        def forward(self, x):
            return self.out(torch.relu(self.hidden(x)) * torch.sigmoid(WEIGHTS[how](*self.parts)).mean())

    network = Mixed()
    with record_potentials(network) as potentials:
        functional.mse_loss(network(torch.randn(5, 3)), torch.zeros(5, 2))
    assert set(potentials) == {"hidden", "out"}


def test_spectral_norm():
    class Spectral(Followed):
        def on_after_backward(self):
            self.eval()  # the vectors that the step has used
            super().on_after_backward()
            self.train()

    module = seeded(Spectral)
    for layer in (module.first, module.second):
        parametrizations.spectral_norm(layer)
    trainer = fit(module)
    module.check(steps=2)
    assert layers(trainer) == LAYERS


def test_a_functional_call_with_other_weights():
    class Functional(Followed):
        """Calls its network with weights that a vector of parameters scales."""

        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(inplace=True), nn.Linear(8, CLASSES))
            self.scale = nn.Parameter(torch.tensor([0.5, 2.0, 1.5, 0.7]))
            del self.first, self.second, self.third

        def weights(self):
            return {name: s * p for s, (name, p) in zip(self.scale, self.net.named_parameters(), strict=True)}

        def forward(self, features):
            return torch.func.functional_call(self.net, self.weights(), (features,))

        def on_after_backward(self):
            Classifier.on_after_backward(self)
            with torch.enable_grad():
                w = self.weights()
                z = self.batch[0] @ w["0.weight"].T + w["0.bias"]
                out = z.clamp(min=0) @ w["2.weight"].T + w["2.bias"]
                loss = functional.cross_entropy(out, self.batch[1]) + LAM * (mean_square(z) + mean_square(out)) / 2
                self.expected.append(torch.autograd.grad(loss, list(self.parameters())))

    module = seeded(Functional)
    trainer = fit(module)
    module.check(steps=2)
    assert layers(trainer) == {"net.0", "net.2"}


# --- teachers and targets --------------------------------------------------------------------------------------------


class Bootstrapped(Followed):
    """Learns from a slowly following copy of itself."""

    def __init__(self, how):
        super().__init__()
        self.online = nn.Sequential(nn.Linear(FEATURES, 5), nn.ReLU(inplace=True), nn.Linear(5, 2))
        self.target = copy.deepcopy(self.online).requires_grad_(how == "detached")
        self.how = how
        del self.first, self.second, self.third

    def training_step(self, batch, batch_index):
        self.features = batch[0]
        found = self.online(self.features)
        with torch.set_grad_enabled(self.how != "no_grad"):
            wanted = self.target(self.features + 1)
        return (found - wanted.detach()).abs().mean()

    def on_after_backward(self):
        self.gradients.append([parameter.grad.clone() for parameter in self.online.parameters()])
        with torch.enable_grad():
            z = self.online[0](self.features)
            out = self.online[2](z.clamp(min=0))
            loss = (out - self.target(self.features + 1)).abs().mean() + LAM * (mean_square(z) + mean_square(out)) / 2
            self.expected.append(torch.autograd.grad(loss, list(self.online.parameters())))

    def on_train_batch_end(self, *args):
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.online.parameters(), strict=True):
                slow.lerp_(fast, 0.5)


@pytest.mark.parametrize("how", ["no_grad", "frozen", "detached"])
def test_a_target_network_that_follows(how):
    module = seeded(Bootstrapped, how)
    trainer = fit(module, batches=3)
    module.check(steps=3)
    assert {"online.0", "online.2"} <= layers(trainer)
    if how == "no_grad":
        assert layers(trainer) == {"online.0", "online.2"}


# --- copies in the middle of a training ------------------------------------------------------------------------------


class Copying(Callback):
    """Copies everything that can be copied in several moments of a step."""

    def __init__(self):
        self.copies = []

    def copy(self, trainer, module):
        stored = io.BytesIO()
        torch.save([module.state_dict(), trainer.callbacks[0]], stored)
        self.copies.append(copy.deepcopy(trainer.callbacks[0]))
        self.copies.append(pickle.loads(pickle.dumps(trainer.callbacks))[0])
        duplicate = copy.deepcopy(module)
        with torch.enable_grad():
            functional.cross_entropy(duplicate(module.batch[0]), module.batch[1]).backward()

    def on_before_backward(self, trainer, pl_module, loss):
        self.copy(trainer, pl_module)

    def on_after_backward(self, trainer, pl_module):
        self.copy(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.copy(trainer, pl_module)
        for duplicate in (copy.deepcopy(trainer), pickle.loads(pickle.dumps(trainer))):
            assert duplicate.strategy.training_step == MethodType(Strategy.training_step, duplicate.strategy)


class Copied(Followed):
    def __deepcopy__(self, memory):
        other = Followed().double()
        other.load_state_dict(self.state_dict())
        return other


def test_copies_in_every_moment_of_a_step_change_nothing():
    module, copying = seeded(Copied), Copying()
    fit(module, copying)
    module.check(steps=2)
    for callback in copying.copies:
        other = seeded()
        quiet_trainer(callback).fit(other, loader(2))
        other.check(steps=2)


# --- Fabric ----------------------------------------------------------------------------------------------------------


def test_fabric():
    fabric = Fabric(accelerator="cpu", devices=1)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(inplace=True), nn.Linear(8, CLASSES)).double()
    model, _ = fabric.setup(network, torch.optim.SGD(network.parameters(), 0.1))
    features, labels = next(iter(loader(1)))
    with record_potentials(network) as potentials_of:
        loss = functional.cross_entropy(model(features), labels)
    fabric.backward(loss + LAM * psp_penalty(potentials_of))
    assert list(potentials_of) == ["0", "2"]
    z = network[0](features)
    out = network[2](z.clamp(min=0))
    loss = functional.cross_entropy(out, labels) + LAM * (mean_square(z) + mean_square(out)) / 2
    assert_same([p.grad for p in network.parameters()], torch.autograd.grad(loss, list(network.parameters())))
