"""Exponentials below the largest exponent, as in attention that is written out as a recurrence, are no activation."""

import pytest
import torch
from torch import Tensor, nn

from lightning_psp import psp_penalty, record_potentials

FEATURES, TIMES = 4, 3


class Recurrence(nn.Module):
    """Weighted means of values, whose weights are exponentials of keys, after RWKV; and a gate."""

    def __init__(self, largest) -> None:
        super().__init__()
        self.key, self.value, self.gate, self.head = (nn.Linear(FEATURES, FEATURES) for _ in range(4))
        self.first = nn.Parameter(torch.randn(FEATURES))
        self.largest = largest

    def forward(self, x: Tensor) -> Tensor:
        keys, values = self.key(x), self.value(x)
        largest = torch.full_like(keys[:, 0], -1e30)
        top, bottom = torch.zeros_like(largest), torch.zeros_like(largest)
        means = []
        for time in range(TIMES):
            key, value = keys[:, time], values[:, time]
            now = self.largest(largest, key + self.first)
            before, here = torch.exp(largest - now), torch.exp(key + self.first - now)
            means.append((before * top + here * value) / (before * bottom + here))
            now = self.largest(largest, key)
            before, here = torch.exp(largest - now), torch.exp(key - now)
            top, bottom, largest = before * top + here * value, before * bottom + here, now
        return self.head(torch.sigmoid(self.gate(x)) * torch.stack(means, 1))


def reference(network: Recurrence, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The output and the potentials, with the weights of each mean as a softmax."""

    def affine(layer: nn.Linear, x: Tensor) -> Tensor:
        return x @ layer.weight.mT + layer.bias

    keys, values, gate = (affine(layer, x) for layer in (network.key, network.value, network.gate))
    means = []
    for time in range(TIMES):
        exponents = torch.cat([keys[:, :time], keys[:, time : time + 1] + network.first], 1)
        means.append((exponents.softmax(1) * values[:, : time + 1]).sum(1))
    output = affine(network.head, torch.stack(means, 1) / (1 + (-gate).exp()))
    return output, [gate, output]


@pytest.mark.parametrize("largest", [torch.maximum, torch.max, Tensor.maximum], ids=["maximum", "max", "method"])
def test_no_layer_is_made_of_them_and_they_are_named(largest):
    torch.manual_seed(0)
    network = Recurrence(largest).double()
    x, target = torch.randn(5, TIMES, FEATURES).double(), torch.randn(5, TIMES, FEATURES).double()
    with pytest.warns(UserWarning, match=r"No layer was found for .*exp"), record_potentials(network) as potentials:
        loss = nn.functional.mse_loss(network(x), target)
    assert list(potentials) == ["gate", "head"]
    (loss + 0.3 * psp_penalty(potentials)).backward()

    output, layers = reference(network, x)
    penalty = sum(z.square().mean() for z in layers) / len(layers)
    parameters = list(network.parameters())
    expected = torch.autograd.grad((output - target).square().mean() + 0.3 * penalty, parameters)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)


def test_a_tensor_below_its_bound_is_an_activation_still():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).double()
    x = torch.randn(6, 4).double()
    with record_potentials(network) as potentials:
        z = network[0](x)
        nn.functional.mse_loss(network[1](torch.maximum(z, 0.1 * z)), torch.zeros(6, 2).double())
    assert list(potentials) == ["0", "1"]


def test_a_module_that_bounds_its_input_is_an_activation_still():
    class Negative(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z - torch.maximum(z, torch.zeros_like(z))

    network = nn.Sequential(nn.Linear(4, 4), Negative(), nn.Linear(4, 2)).double()
    with record_potentials(network) as potentials:
        nn.functional.mse_loss(network(torch.randn(6, 4).double()), torch.zeros(6, 2).double())
    assert list(potentials) == ["0", "2"]
