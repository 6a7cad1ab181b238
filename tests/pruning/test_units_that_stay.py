"""What units are not removed from, and what the error says."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torchvision.models import resnet18

from lightning_psp.pruning import remove_constant_units
from tests.support.pruning.networks import TiedTransformer, old_weight_norm
from tests.support.pruning.units import data, silence, two_layers, units

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)


class Of(nn.Module):
    """A network by its `forward`."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.run(self, x)


def linear():
    return {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 4)}


REFUSED = {
    "residual within": (
        lambda: Of(lambda m, x: m.c((h := m.a(x)) + m.b(h)), **linear()),
        r"the output of a \(Linear\) goes to 2 places, as around a residual connection",
    ),
    "input put in again": (
        lambda: Of(lambda m, x: m.b(torch.cat([m.a(x), x], 1)), a=nn.Linear(4, 4), b=nn.Linear(8, 4)),
        r"cat puts the output of a \(Linear\) together with another",
    ),
    "two outputs": (
        lambda: Of(lambda m, x: (h := m.a(x), m.b(h)), **linear()),
        r"the output of a \(Linear\) goes to 2 places",
    ),
    "control flow": (
        lambda: Of(lambda m, x: m.b(m.a(x)) if x.sum() > 0 else x, **linear()),
        r"its `forward` cannot be followed by torch.fx \(symbolically traced variables cannot be used",
    ),
    "softmax": (lambda: Of(lambda m, x: m.b(m.a(x).softmax(1)), **linear()), "softmax stands between its layers"),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)),
        r"1 \(LayerNorm\) stands between its layers",
    ),
    "pooling of features": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.MaxPool1d(2), nn.Linear(2, 4)),
        "between 0 and 2 the channels do not stay where they are",
    ),
    "linear on positions": (
        lambda: nn.Sequential(nn.Conv1d(4, 4, 1), nn.Linear(4, 4)),
        "between 0 and 1 the channels do not stay",
    ),
    "flattened sequences": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Flatten(), nn.Linear(4, 4)),
        "between 0 and 2 the channels do not stay",
    ),
    "groups": (
        lambda: nn.Sequential(nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 1, groups=2)),
        "1 is a convolution of 2 groups",
    ),
    "recurrent": (lambda: nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4)), "1 is recurrent"),
    "used twice": (
        lambda: Of(lambda m, x: m.b(m.a(m.a(x))), **linear()),
        "a is used, or shares its weights, in several",
    ),
    "weight norm": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4)),
        "the weights of 0 are made from others, as by weight norm: remove that before",
    ),
    "old weight norm": (
        lambda: nn.Sequential(nn.Linear(4, 4), old_weight_norm(nn.Linear(4, 4))),
        "the weights of 1 are made from others",
    ),
    "no layer": (lambda: nn.Sequential(nn.ReLU()), "it calls no linear or convolution layer"),
    "resnet18": (lambda: resnet18(), "goes to 2 places, as around a residual connection"),
    "transformer": (TiedTransformer, "head is used, or shares its weights, in several places"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_networks_are_refused(name):
    make, message = REFUSED[name]
    network = make()
    with pytest.raises(NotImplementedError, match=message) as raised:
        remove_constant_units(network, data(4, dtype=torch.float32))
    assert f"{type(network).__name__} is none: " in str(raised.value)


def test_shared_weights_are_refused():
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    network[2].weight = network[0].weight
    with pytest.raises(NotImplementedError, match="0 is used, or shares its weights, in several places"):
        remove_constant_units(network, data(4, dtype=torch.float32))


def test_code_that_relies_on_sizes():
    parts = {"a": nn.Conv1d(4, 4, 1), "b": nn.Linear(12, 3)}
    network = Of(lambda m, x: m.b(m.a(x).relu().view(-1, 12)), **parts).double()
    silence(network, "a", 1)
    with pytest.raises(NotImplementedError, match="cannot be removed: its code relies on the sizes of its layers"):
        remove_constant_units(network, data(4, 3))
    network.run = lambda m, x: m.b(m.a(x).relu().reshape([x.shape[0], -1]))
    assert units(remove_constant_units(network, data(4, 3))) == [3, 3]


def test_code_that_computes_something_else_without_units():
    """Never silently."""
    network = Of(lambda m, x: m.b(m.a(x).relu()) * m.a.weight.shape[0], **linear()).double()
    del network.c
    network.run = lambda m, x: m.b((m.a(x) if m.a.out_features == 4 else 2 * m.a(x)).relu())
    silence(network, "a", 1)
    with pytest.raises(NotImplementedError, match="without the units it computes something else"):
        remove_constant_units(network, data(4))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"module": "network"}, TypeError, "`module` to be a `torch.nn.Module` but got str"),
        ({"data": []}, ValueError, "`data` to give at least one sample but got none"),
        (
            {"data": iter(data(4))},
            TypeError,
            "`data` to be an iterable that starts again each time, such as a DataLoader",
        ),
        ({"data": 3}, TypeError, "`data` to be an iterable of batches but got int"),
        ({"data": data(4, samples=0)}, ValueError, "`data` to give at least one sample but got none"),
        ({"data": [{"x": torch.zeros(2, 4)}]}, TypeError, "but got dict. Make tuples of it, such as (batch['x'],)."),
        ({"data": [torch.zeros(2, 4)]}, TypeError, "but got Tensor. A single batch is given as a list of one"),
        ({"include": "0"}, TypeError, "`include` to be a sequence of glob patterns"),
    ],
)
def test_arguments(arguments, error, message):
    network = two_layers(nn.ReLU()).double()
    with pytest.raises(error) as raised:
        remove_constant_units(**{"module": network, "data": data(4), **arguments})
    assert message in str(raised.value)
