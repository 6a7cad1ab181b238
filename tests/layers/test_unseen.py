"""What could not be seen is said, with the remedy."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_psp import PSPCallback, record_potentials
from tests.support.layers.activations import VisibleSwish
from tests.support.layers.case import LayerCase, affine, expected, mse_loss, one, passes
from tests.support.layers.cases_activations import Activated
from tests.support.layers.cases_outputs import FEATURES, HIDDEN, OUTPUTS, batch, mse, plain
from tests.support.layers.watched import (
    assert_gradients,
    fit,
    gradients_by_network,
    gradients_in_lightning,
    logged_layers,
    recorded,
)

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


class CubeFunction(torch.autograd.Function):
    """Computed where torch does not see it, as by a kernel of its own."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return torch.from_numpy(x.detach().numpy() ** 3)

    @staticmethod
    def backward(context, gradient):
        (x,) = context.saved_tensors
        return 3 * x**2 * gradient


class Cube(nn.Module):
    def forward(self, x):
        return CubeFunction.apply(x)


class Two(nn.Module):
    """A second hidden layer, behind an activation that is given."""

    def __init__(self, act):
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.head, self.act = nn.Linear(HIDDEN, OUTPUTS), act

    def forward(self, x):
        return self.head(torch.tanh(self.second(self.act(self.first(x)))))


def trained(network, epochs=2, **arguments):
    """The layers of a training, and the warnings that it gave."""
    return trained_case(LayerCase("unseen", network, batch, mse, plain), epochs, **arguments)


def trained_case(case, epochs=2, **arguments):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        warnings.filterwarnings("ignore", message="You defined a `validation_step` but have no")
        warnings.filterwarnings("ignore", message="`isinstance")
        _, trainer = fit(case, PSPCallback(lam=0.1, **arguments), epochs=epochs)
    return set(logged_layers(trainer)), [str(warning.message) for warning in caught]


def test_a_custom_function_is_named_once_with_module_and_remedy():
    layers, messages = trained(lambda: Two(Cube()))
    assert layers == {"network.second", "network.head"}
    (message,) = [text for text in messages if "activations" in text]
    assert "network.act" in message
    assert len(messages) == 1


def test_a_custom_function_called_in_the_networks_forward_is_named_too():
    _, messages = trained(lambda: Two(CubeFunction.apply))
    (message,) = [text for text in messages if "activations" in text]
    assert "network" in message
    assert "Cube" in message


def test_a_module_around_a_custom_function_of_torch_functions_is_an_activation():
    layers, messages = trained(lambda: Two(VisibleSwish()))
    assert layers == {"network.first", "network.second", "network.head"}
    assert not messages


def test_the_remedy_helps():
    layers, messages = trained(lambda: Two(Cube()), activations=(Cube,))
    assert layers == {"network.first", "network.second", "network.head"}
    assert not messages


class Spiking(nn.Module):
    """Adds what it is given to a state, and returns a function of the state, which torch does not see, beside it."""

    def forward(self, x, state):
        state = 0.9 * state + x
        return 0.5 * CubeFunction.apply(state), state


class SpikesTwice(Two):
    def forward(self, x):
        state, spikes = torch.zeros(len(x), HIDDEN, dtype=x.dtype), []
        for _ in range(2):
            spike, state = self.act(self.first(x), state)
            spikes.append(spike)
        return self.head(torch.tanh(self.second(spikes[0] + spikes[1])))


def spiking(network, data):
    x, y = data
    first = affine(network.first, x)
    second = affine(network.second, 0.5 * first**3 + 0.5 * (1.9 * first) ** 3)
    prediction = affine(network.head, second.tanh())
    layers = {"first": passes([first, first]), "second": one(second), "head": one(prediction)}
    return mse_loss(prediction, y), layers


@pytest.mark.parametrize("gradients", [gradients_in_lightning, gradients_by_network])
def test_a_named_module_that_returns_its_state_too(gradients):
    case = LayerCase("spiking", lambda: SpikesTwice(Spiking()), batch, mse, spiking)
    wanted = expected(case)
    lam = wanted.balanced_lam()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="No layer was found|Layers without a penalty")
        found = gradients(case, "mean", lam, activations=(Spiking,))
    assert_gradients(found, wanted.gradients(lam))


@pytest.mark.parametrize(
    "function", [torch.sin, torch.exp, torch.expm1, torch.erf, torch.atan, lambda z: z.clamp(min=-1) ** 3]
)
def test_an_elementwise_function_is_a_nonlinearity_or_said(function):
    layers, messages = trained(lambda: Two(function))
    assert "network.first" in layers or any("activations" in text for text in messages)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("'torch.maximum'", lambda z: torch.maximum(z, torch.zeros_like(z))),
        ("'torch.logaddexp'", lambda z: torch.logaddexp(z, torch.zeros_like(z))),
        ("'torch.fmax'", lambda z: torch.fmax(z, torch.zeros_like(z))),
        ("'torch.special.i0e'", torch.special.i0e),
        ("'torch.sinc'", torch.special.sinc),
        ("class of a module", lambda z: torch.max(z, torch.zeros_like(z))),
        ("class of a module", lambda z: 1 / (1 + z * z)),
    ],
)
def test_a_function_is_named_with_the_remedy(name, function):
    layers, messages = trained(lambda: Two(function))
    assert layers == {"network.second", "network.head"}
    (message,) = [text for text in messages if "activations" in text]
    assert name in message


class ReturnsObject(Two):
    def forward(self, x):
        return SimpleNamespace(prediction=super().forward(x))


def test_an_output_that_is_not_found_is_said_with_the_remedy():
    def step(network, batch):
        return functional.mse_loss(network(batch[0]).prediction, batch[1])

    case = LayerCase("object", lambda: ReturnsObject(torch.tanh), batch, step, plain)
    _, messages = trained_case(case)
    (message,) = [text for text in messages if "output" in text]
    assert "`forward`" in message
    with pytest.warns(UserWarning, match="`forward`"):
        recorded(case, by_module=True)


class Margin(Two):
    """Gives a cross-entropy that is written out as the softplus of what the other classes have above the right one."""

    def forward(self, x, labels):
        z = super().forward(x)
        others = torch.arange(z.shape[1]) != labels[:, None]
        above = torch.logsumexp((z - z.gather(1, labels[:, None])).masked_fill(~others, -torch.inf), 1)
        return functional.softplus(above).masked_fill(labels < 0, 0.0).sum() / len(labels)


def test_the_nonlinearity_of_a_loss_whose_output_is_not_found_is_no_layer():
    def labelled():
        x = batch()[0]
        return x, torch.arange(len(x)) % OUTPUTS

    case = LayerCase("margin", lambda: Margin(torch.tanh), labelled, lambda network, batch: network(*batch), plain)
    layers, messages = trained_case(case)
    assert layers == {"network.first", "network.second"}
    assert [text for text in messages if "No output layer was found" in text]


@pytest.mark.parametrize("act", [nn.Softmax(-1), Cube()], ids=["softmax", "custom function"])
def test_a_network_of_several_layers_with_only_its_output_found_is_said(act):
    layers, messages = trained(lambda: Activated(act))
    assert layers == {"network.head"}
    assert any("output" in text for text in messages)


class OfFunctionsOfParameters(nn.Module):
    """Bounds what weights give that are functions of its parameters, as a quantised network does."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.randn(*s)) for s in ((HIDDEN, FEATURES), (OUTPUTS, HIDDEN)))

    def forward(self, x):
        hidden = functional.linear(x, torch.tanh(self.first)).clamp(0, 1)
        return functional.linear(hidden, torch.tanh(self.second))


def test_layers_that_functions_of_parameters_make_are_several_too():
    layers, messages = trained(OfFunctionsOfParameters)
    assert layers == {"network"}
    assert any("only the output" in text for text in messages)


class OverwrittenView(nn.Module):
    """Its last activation overwrites a view, which a linear map makes of tokens."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x):
        return functional.relu_(self.head(torch.tanh(self.first(x)).unsqueeze(1))).squeeze(1)


@pytest.mark.parametrize(
    "network", [lambda: nn.Linear(FEATURES, OUTPUTS), lambda: Two(functional.gelu), OverwrittenView]
)
def test_nothing_is_said_of_networks_that_are_seen_whole(network):
    _, messages = trained(network)
    assert not messages


def test_recorded_layers_of_a_network_with_a_custom_function():
    network = Two(Cube()).double()
    x = batch()[0].double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with record_potentials(network) as potentials:
            network(x).square().mean()
    assert list(potentials) == ["second", "head"]
    with record_potentials(network, activations=(Cube,)) as potentials:
        network(x).square().mean()
    assert list(potentials) == ["first", "second", "head"]


@pytest.mark.parametrize("bound", [torch.tensor(0.0), torch.tensor(-1e9)])
def test_a_bound_is_no_nonlinearity(bound):
    layers, messages = trained(lambda: Two(lambda z: torch.max(z, bound)))
    assert layers == {"network.second", "network.head"}
    assert not messages


class PowerNorm(nn.Module):
    """A normalisation by a power of a mean."""

    def forward(self, x):
        return x * torch.pow(x.pow(2).mean(-1, keepdim=True) + 1e-6, -0.5)


def test_a_power_of_a_mean_is_a_part_of_a_norm():
    class Normed(Two):
        def forward(self, x):
            return self.head(torch.tanh(self.second(torch.relu(self.act(self.first(x))))))

    layers, messages = trained(lambda: Normed(PowerNorm()))
    assert len(layers) == 3
    assert not [text for text in messages if "activations" in text]


class TwoHeads(nn.Module):
    """Computes its loss itself: a loss of torch for one head, and a given one for the other."""

    def __init__(self, other_loss):
        super().__init__()
        self.first, self.head, self.other = (
            nn.Linear(FEATURES, HIDDEN),
            nn.Linear(HIDDEN, OUTPUTS),
            nn.Linear(HIDDEN, 2),
        )
        self.other_loss = other_loss

    def forward(self, x, y):
        h = torch.relu(self.first(x))
        return functional.mse_loss(self.head(h), y) + self.other_loss(self, h)


def heads_of(other_loss):
    def step(network, batch):
        return network(*batch)

    return trained_case(LayerCase("heads", lambda: TwoHeads(other_loss), batch, step, plain))


def test_a_head_whose_loss_is_written_out_is_said():
    layers, messages = heads_of(lambda network, h: (network.other(h) - 1).abs().mean())
    assert layers == {"network.first", "network.head"}
    (message,) = [text for text in messages if "past every layer" in text]
    assert "network.other " in message
    assert "have `forward` return it" in message


def decay(network, h):
    return network.other.weight.square().sum()


def orthogonality(network, h):
    return (network.other.weight @ network.other.weight.mT - torch.eye(2)).square().sum()


def smoothness(network, h):
    (gradient,) = torch.autograd.grad(network.other(h).sum(), h, create_graph=True)
    return gradient.square().mean()


@pytest.mark.parametrize("penalty", [decay, orthogonality, smoothness])
def test_penalties_on_weights_and_gradients_are_no_heads(penalty):
    layers, messages = heads_of(penalty)
    assert layers >= {"network.first", "network.head"}
    assert not [text for text in messages if "past every layer" in text]


class Given(nn.Module):
    """A weight that is a module of its own."""

    def __init__(self, *shape):
        super().__init__()
        self.values = nn.Parameter(0.3 * torch.randn(shape))

    def forward(self):
        return self.values


class Positive(nn.Module):
    """Functions of weights that another module returned."""

    def __init__(self):
        super().__init__()
        self.first, self.scale, self.head = nn.Linear(FEATURES, HIDDEN), Given(HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.slope = Given(HIDDEN)

    def forward(self, x):
        return self.head(torch.tanh(self.first(x) * self.scale().exp()) * self.slope().abs())


def test_functions_of_a_returned_weight_are_no_suspects():
    layers, messages = trained(Positive)
    assert layers == {"network.first", "network.head"}
    assert messages == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = Positive()
        with record_potentials(network) as potentials:
            network(torch.randn(8, FEATURES))
    assert list(potentials) == ["first", "head"]


class OfWeights(torch.autograd.Function):
    """A function computed without gradient, and again in the backward pass, as an integral is."""

    @staticmethod
    def forward(context, function, x, *weights):
        context.function = function
        context.save_for_backward(x, *weights)
        return function(x)

    @staticmethod
    def backward(context, gradient):
        x, *weights = context.saved_tensors
        with torch.enable_grad():
            result = context.function(x.detach())
        return None, None, *torch.autograd.grad(result, weights, gradient)


def test_a_function_of_weights_that_the_loss_reaches_past_every_layer_is_named():
    def integral(network, h):
        return OfWeights.apply(network.other, h, *network.other.parameters()).square().mean()

    layers, messages = heads_of(integral)
    assert layers == {"network.first", "network.head"}
    (message,) = [text for text in messages if "activations" in text]
    assert "No layer was found for OfWeights of the weights in network.other." in message
