"""Networks that `torch.export` made, which call operators in place of torch's functions."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_psp import PSPCallback, psp_penalty, record_potentials
from tests.support.lightning_cases import fit

pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")  # of exports of recurrent layers
LAM = 10.0
IMAGES = torch.randn(4, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])


class Convolutions(nn.Module):
    """Activations that overwrite, of a batch norm and of a residual sum."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images):
        features = self.relu(self.norm(self.conv(images)))
        features = self.relu(features + self.inner(features))
        return self.head(functional.max_pool2d(features, 8).flatten(1))


class Gates(nn.Module):
    """Gates that are parts of one layer, an activation with an option, and one that is written out."""

    def __init__(self):
        super().__init__()
        self.project, self.norm = nn.Linear(64, 8), nn.LayerNorm(8)
        self.both, self.last, self.head = nn.Linear(8, 8), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, images):
        features = functional.gelu(self.norm(self.project(images.flatten(2)).mean(1)), approximate="tanh")
        gate, value = self.both(features).chunk(2, dim=-1)
        z = self.last(torch.sigmoid(gate) * torch.tanh(value))
        return self.head(z * torch.sigmoid(1.702 * z))


class Attention(nn.Module):
    """Attention, whose softmax makes no layer."""

    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, images):
        return self.head(self.block(images[:, 0])[:, 0])


class Recurrent(nn.Module):
    """Gates inside the kernel of a recurrent layer."""

    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(8, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, images):
        return self.head(self.gru(images[:, 0])[0][:, -1])


class WithLoss(nn.Module):
    """A network that computes its loss itself."""

    def __init__(self):
        super().__init__()
        self.net = Convolutions()
        self.register_buffer("labels", LABELS)

    def forward(self, images):
        return functional.cross_entropy(self.net(images), self.labels)


LAYERS = {
    Convolutions: ["norm", "relu", "head"],
    Gates: ["norm", "both", "last", "head"],
    Attention: ["block.linear1", "head"],
    Recurrent: ["gru", "head"],
    WithLoss: ["net.norm", "relu", "net.head"],
}


def made(kind):
    torch.manual_seed(0)
    network = kind().double()
    return network, torch.export.export(network, (IMAGES,)).module()


def loss_of(network, images=IMAGES):
    result = network(images)
    return result if result.ndim == 0 else functional.cross_entropy(result, LABELS)


def recorded(network):
    network.zero_grad()
    with record_potentials(network) as potentials:
        loss = loss_of(network)
    (loss + LAM * psp_penalty(potentials)).backward()
    return potentials, {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("kind", LAYERS)
def test_recorded_potentials_are_those_of_the_network(kind):
    network, graph = made(kind)
    expected, expected_gradients = recorded(network)
    potentials, gradients = recorded(graph)
    assert list(dict.fromkeys(layer for layer, _ in potentials.layers.values())) == LAYERS[kind]
    torch.testing.assert_close([*potentials.values()], [*expected.values()])
    torch.testing.assert_close(gradients, expected_gradients)


@pytest.mark.parametrize("kind", LAYERS)
def test_gradient_in_lightning(kind):
    network, graph = made(kind)
    _, expected = recorded(network)
    module, trainer = fit(graph, loss_of, [IMAGES], PSPCallback(lam=LAM))
    prefix = "psp_z2_train/network."
    layers = [key.removeprefix(prefix) for key in trainer.callback_metrics if key.startswith(prefix)]
    assert layers == LAYERS[kind]
    torch.testing.assert_close(module.gradients[0], expected)


@pytest.mark.parametrize("kind", [Convolutions, Gates])
def test_compiled(kind, fresh_compiler):
    network, graph = made(kind)
    _, expected = recorded(network)
    module, _ = fit(torch.compile(graph, backend="aot_eager"), loss_of, [IMAGES], PSPCallback(lam=LAM))
    gradients = {name.removeprefix("_orig_mod."): gradient for name, gradient in module.gradients[0].items()}
    torch.testing.assert_close(gradients, expected)


def test_operators_that_are_named_as_activations():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Linear(8, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, images):
            features = torch.ops.aten.silu_(self.second(torch.ops.aten.sin.default(self.first(images[:, 0, 0]))))
            return self.last(features)

    network = Named().double()
    with record_potentials(network, activations=(torch.sin,)) as potentials:
        network(IMAGES)
    assert list(potentials) == ["first", "second", "last"]
