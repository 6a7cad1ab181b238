"""Modules with weights that hand on what they are given, as it was, beside what they make or alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.layers.case import LayerCase, Layers, affine, mse_loss, one
from tests.support.layers.cases_outputs import FEATURES, HIDDEN, OUTPUTS, batch, mse


class Sum(nn.Module):
    """Two linear maps, of which functions make sums."""

    def __init__(self, features: int, forward: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(features, HIDDEN), nn.Linear(features, HIDDEN)
        self.of = forward

    def both(self, x: Tensor) -> Tensor:
        return self.left(x) + self.right(x)

    def forward(self, given: Any) -> Any:
        return self.of(self, given)


class Chain(nn.Module):
    """Two sums, the second of the first, and a head."""

    def __init__(
        self, first: Callable[[Any, Any], Any], second: Callable[[Any, Any], Any], last: Callable[[Any], Tensor]
    ) -> None:
        super().__init__()
        self.first, self.second, self.last = Sum(FEATURES, first), Sum(HIDDEN, second), last
        self.head = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.second(self.first(x))))


def sums(network: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    z = affine(network.first.left, x) + affine(network.first.right, x)
    return z, affine(network.second.left, z) + affine(network.second.right, z)


def beside(network: Any, batch: Any) -> tuple[Tensor, Layers]:
    first, second = sums(network, batch[0])
    y = affine(network.head, torch.tanh(first) + second * (second > 0))
    return mse_loss(y, batch[1]), {"first": one(first), "second": one(second), "head": one(y)}


def alone(network: Any, batch: Any) -> tuple[Tensor, Layers]:
    first, _ = sums(network, batch[0])
    y = affine(network.head, torch.tanh(first))
    return mse_loss(y, batch[1]), {"first": one(first), "head": one(y)}


def added(network: Any, batch: Any) -> tuple[Tensor, Layers]:
    first, second = sums(network, batch[0])
    y = affine(network.head, torch.tanh(first + second))
    return mse_loss(y, batch[1]), {"second": one(first + second), "head": one(y)}


def written_into(table: dict[str, Tensor], key: str, z: Tensor) -> dict[str, Tensor]:
    table[key] = z
    return table


CHAINS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, Any], tuple[Tensor, Layers]]]] = {
    "beside its own sum": (
        partial(
            Chain,
            lambda module, x: module.both(x),
            lambda module, z: (module.both(z), z),
            lambda given: torch.tanh(given[1]) + torch.relu(given[0]),
        ),
        beside,
    ),
    "in a dict": (
        partial(
            Chain,
            lambda module, x: {"x": x, "z": module.both(x)},
            lambda module, table: written_into(table, "y", module.both(table["z"])),
            lambda table: torch.tanh(table["z"]) + torch.relu(table["y"]),
        ),
        beside,
    ),
    "alone": (partial(Chain, lambda module, x: module.both(x), lambda _, z: z, torch.tanh), alone),
    "with its own added in place": (
        partial(Chain, lambda module, x: module.both(x), lambda module, z: z.add_(module.both(z.clone())), torch.tanh),
        added,
    ),
    "with its own added in place by rows": (
        partial(
            Chain,
            lambda module, x: module.both(x),
            lambda module, z: z.index_add_(0, torch.arange(len(z)), module.both(z.clone())),
            torch.tanh,
        ),
        added,
    ),
}
HANDED_ON_CASES = [
    LayerCase(f"handed on by weights, {name}", network, batch, mse, reference)
    for name, (network, reference) in CHAINS.items()
]
