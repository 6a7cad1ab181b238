"""Bounds next to 0 that a mask writes out, as under a root, are no activation, as `clamp` is none there."""

import pytest
import torch
from torch import Tensor, nn

from lightning_psp import psp_penalty, record_potentials

FEATURES, NEIGHBOURS = 4, 3


def bounded(squares: Tensor) -> Tensor:
    """After `NormActivation` of e3nn."""
    squares[squares < 1e-16] = 1e-16
    return squares.sqrt()


def moved(squares: Tensor) -> Tensor:
    """As a state is scaled in MuZero."""
    squares[squares < 1e-16] += 1e-16
    return squares.sqrt()


def filled(squares: Tensor) -> Tensor:
    return squares.masked_fill(squares < 1e-16, 1e-16).sqrt()


def chosen(squares: Tensor) -> Tensor:
    return torch.where(squares > 1e-16, squares, 1e-16).sqrt()


def zero_at_the_bound(squares: Tensor) -> Tensor:
    """After `StdAggregation` of torch_geometric."""
    root = squares.clamp(min=1e-5).sqrt()
    return root.masked_fill(root <= 1e-5**0.5, 0.0)


class Spread(nn.Module):
    """Features of neighbours, of which the spread is taken."""

    def __init__(self, root) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.root = root

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        means = h.mean(1)
        return self.last(self.root((h * h).mean(1) - means * means))


@pytest.mark.parametrize("root", [bounded, moved, filled, chosen, zero_at_the_bound])
def test_a_bound_under_a_root_is_no_layer(root):
    torch.manual_seed(0)
    network = Spread(root).double()
    x, target = torch.randn(5, NEIGHBOURS, FEATURES).double(), torch.randn(5, FEATURES).double()
    with record_potentials(network) as potentials:
        loss = nn.functional.mse_loss(network(x), target)
    assert list(potentials) == ["first", "last"]
    (loss + 0.3 * psp_penalty(potentials)).backward()

    z = x @ network.first.weight.T + network.first.bias
    output = root(z.clamp(min=0).var(1, correction=0)) @ network.last.weight.T + network.last.bias
    penalty = (z.square().mean() + output.square().mean()) / 2
    parameters = list(network.parameters())
    expected = torch.autograd.grad((output - target).square().mean() + 0.3 * penalty, parameters)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)


def overwritten(z: Tensor, *bounds: tuple[bool, float]) -> Tensor:
    z = z.clone()
    for is_upper, bound in bounds:
        z[z > bound if is_upper else z < bound] = bound
    return z


def shrunk(z: Tensor) -> Tensor:
    return z.masked_fill(z <= 1e-3, 0.0)


@pytest.mark.parametrize(
    "function",
    [
        lambda z: overwritten(z, (False, 0.0)),
        lambda z: overwritten(z, (False, -1.0), (True, 1.0)),
        lambda z: z.masked_fill(z <= 0.5, 0.0),
        lambda z: z.masked_fill(z <= 1e-3, 0.0),
        lambda z: torch.where(z > 1e-3, z, 0.1 * z),
        lambda z: shrunk(z.clamp(max=6.0)),
    ],
    ids=["relu", "hardtanh", "threshold", "threshold next to 0", "leaky relu", "threshold behind a far bound"],
)
def test_activations_of_masks_are_activations_still(function):
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(function(self.first(x)))

    network = Network().double()
    with record_potentials(network) as potentials:
        network(torch.randn(5, FEATURES).double())
    names = list(potentials)  # a bound above may be a layer of its own
    assert names[0] == "first"
    assert names[-1] == "last"
