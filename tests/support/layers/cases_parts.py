"""Parts and multiples of a head, returned or given to the loss: the layer is the head's whole output."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.layers.case import LayerCase, affine, mse_loss, one, parts
from tests.support.layers.cases_outputs import BATCH, FEATURES, HIDDEN, Trunk, batch, case, mse, trunk

WIDTH = 4


class Part(Trunk):
    """Returns what a function makes of its head."""

    def __init__(self, of: Callable[[Tensor], Tensor]) -> None:
        super().__init__(WIDTH)
        self.of = of

    def forward(self, x: Tensor) -> Any:
        return self.of(super().forward(x))


def part(written_out: Callable[[Tensor], Tensor], network: Any, batch: Any):
    first, _, y = trunk(network, batch[0])
    return mse_loss(written_out(y), torch.full((), 0.5)), {"first": one(first), "head": one(y)}


def to_constant(network: nn.Module, batch: Any) -> Tensor:
    return (network(batch[0]) - 0.5).square().mean()


PARTS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "squeezed slice": (lambda y: y[:, :1].squeeze(-1), lambda y: y[:, 0]),
    "chunk": (lambda y: y.chunk(2, -1)[0], lambda y: y[:, :2]),
    "unbind": (lambda y: y.unbind(-1)[1], lambda y: y[:, 1]),
    "gathered": (lambda y: y.gather(-1, y.new_ones(BATCH, 1).long()), lambda y: y[:, 1]),
    "last row": (lambda y: y[-1:], lambda y: y[BATCH - 1]),
    "multiple": (lambda y: y / 3, lambda y: y * (1 / 3)),
}


class Assigned(Trunk):
    """Writes its potentials into a tensor in parts."""

    def forward(self, x: Tensor) -> Any:
        z = self.first(x)
        parts = x.new_empty(z.shape)
        parts[:, 0] = z[:, 0]
        parts[:, 1:] = 2 * z[:, 1:]
        return self.head(torch.relu(parts))


def assigned(network: Any, batch: Any):
    z = affine(network.first, batch[0])
    written = torch.cat([z[:, :1], 2 * z[:, 1:]], 1)
    y = affine(network.head, written * (written > 0))
    return mse_loss(y, batch[1]), {"relu": one(written), "head": one(y)}


class Amplitudes(nn.Module):
    """Complex potentials."""

    def __init__(self) -> None:
        super().__init__()
        self.real, self.imaginary = nn.Linear(FEATURES, HIDDEN), nn.Linear(FEATURES, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return torch.complex(self.real(x), self.imaginary(x))


class Complex(Trunk):
    """Real and imaginary part of its potentials enter nonlinearities of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Amplitudes()

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        return self.head(torch.relu(z.real) + torch.tanh(z.imag))


def complex_parts(network: Any, batch: Any):
    real, imaginary = affine(network.first.real, batch[0]), affine(network.first.imaginary, batch[0])
    y = affine(network.head, real * (real > 0) + torch.tanh(imaginary))
    return mse_loss(y, batch[1]), {"first": parts(real, imaginary), "head": one(y)}


class Coupling(nn.Module):
    """One step of a flow: its values, and the logarithm of its volume."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shift = nn.Linear(2, HIDDEN), nn.Linear(HIDDEN, 4)

    def forward(self, x: Tensor) -> Any:
        kept, changed = x.chunk(2, -1)
        scale, shift = self.shift(torch.relu(self.first(kept))).chunk(2, -1)
        scale = torch.tanh(scale)
        return torch.cat([changed * scale.exp() + shift, kept], -1), scale.sum(-1)


class Inside(nn.Module):
    """Hands on what a module inside it returns."""

    def __init__(self, of: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.inner = of()

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


def density(network: nn.Module, batch: Any) -> Tensor:
    y, volume = network(batch[0])
    return (0.5 * y.square().sum(-1) - volume).mean()


def coupling(network: Any, batch: Any):
    kept, changed = batch[0][:, :2], batch[0][:, 2:]
    first = affine(network.first, kept)
    z = affine(network.shift, first * (first > 0))
    scale = torch.tanh(z[:, :2])
    y = torch.cat([changed * scale.exp() + z[:, 2:], kept], 1)
    loss = (0.5 * (y**2).sum(1) - scale.sum(1)).mean()
    return loss, {"first": one(first), "shift": one(z[:, :2]), "?values": one(y)}


def coupling_inside(network: Any, batch: Any):
    loss, layers = coupling(network.inner, batch)
    return loss, {"inner" if name == "?values" else f"inner.{name}": passes for name, passes in layers.items()}


PART_CASES = [
    *(
        LayerCase(f"returned part, {name}", partial(Part, of), batch, to_constant, partial(part, written_out))
        for name, (of, written_out) in PARTS.items()
    ),
    case("potentials written in parts", Assigned, mse, assigned),
    case("real and imaginary parts", Complex, mse, complex_parts),
    LayerCase("coupling flow", Coupling, batch, density, coupling, outputs=("?values",), alone=None),
    LayerCase(
        "coupling flow inside the network",
        partial(Inside, Coupling),
        batch,
        density,
        coupling_inside,
        outputs=("inner",),
        alone=None,
    ),
]
