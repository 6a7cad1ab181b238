"""Networks with units that are constant over data."""

import torch
from torch import nn

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)


def data(*shape, batches=2, samples=40, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(samples, *shape, generator=generator, dtype=dtype), None) for _ in range(batches)]


def units(network):
    """The number of units of each layer."""
    found = [part for part in network.modules() if isinstance(part, LAYERS)]
    return [getattr(part, "out_features", None) or part.out_channels for part in found]


def silence(network, path, unit, bias=-1.0, weight=0.0):
    """Has a unit give the same for every input: its bias, before the activation."""
    layer = network.get_submodule(path)
    dim = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    with torch.no_grad():
        layer.weight.select(dim, unit).fill_(weight)
        layer.bias[unit] = bias


def two_layers(activation, **settings):
    return nn.Sequential(nn.Linear(4, 6, **settings), activation, nn.Linear(6, 3))
