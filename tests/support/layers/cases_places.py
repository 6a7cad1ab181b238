"""Residual sums that enter activations of the user's own, and modules that rectify what they are given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.layers.activations import Formula, NewGELU, QuickGELU, Swish, gelu_tanh, quick_gelu, swish
from tests.support.layers.case import LayerCase, affine, mse_loss, one
from tests.support.layers.cases_names import Blocks
from tests.support.layers.cases_outputs import HIDDEN, batch, mse


class Sums(nn.Module):
    """One activation for a linear map and for two sums."""

    def __init__(self, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Linear(HIDDEN, HIDDEN) for _ in range(3))
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.one(x))
        x = self.act(x + self.two(x))
        return self.act(x + self.three(x))


def sums(formula: Formula, network: Any, batch: Any):
    block = network.block
    first = affine(block.one, affine(network.embed, batch[0]))
    x = formula(None, first)
    second = x + affine(block.two, x)
    x = formula(None, second)
    third = x + affine(block.three, x)
    y = affine(network.head, formula(None, third))
    layers = {"block.one": one(first), "block.act": one(second), "block.act:1": one(third), "head": one(y)}
    return mse_loss(y, batch[1]), layers


class RectifiedPooling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool1d(F.relu(x), 3, stride=1, padding=1)


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.pool = nn.Linear(HIDDEN, HIDDEN), RectifiedPooling()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x + self.inner(x))


def pooled(network: Any, batch: Any):
    x = affine(network.embed, batch[0])
    z = x + affine(network.block.inner, x)
    framed = torch.cat([torch.zeros(len(z), 1), z * (z > 0), torch.zeros(len(z), 1)], 1)
    y = affine(network.head, (framed[:, :-2] + framed[:, 1:-1] + framed[:, 2:]) / 3)
    return mse_loss(y, batch[1]), {"block.pool.relu": one(z), "head": one(y)}


ACTIVATIONS: dict[str, tuple[Callable[[], nn.Module], Formula]] = {
    "Swish": (Swish, swish),
    "Swish in place": (partial(Swish, True), swish),
    "QuickGELU": (QuickGELU, quick_gelu),
    "NewGELU": (NewGELU, gelu_tanh),
}
PLACE_CASES = [
    *(
        LayerCase(f"sums through one {name}", partial(Blocks, partial(Sums, act)), batch, mse, partial(sums, formula))
        for name, (act, formula) in ACTIVATIONS.items()
    ),
    LayerCase("sum through a pooling module that rectifies", partial(Blocks, Pooled), batch, mse, pooled),
]
