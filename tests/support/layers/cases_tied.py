"""Modules that share their parameters: their calls are passes of the same neurons."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.layers.case import LayerCase, affine, mse_loss, one, passes
from tests.support.layers.cases_outputs import FEATURES, HIDDEN, OUTPUTS, batch, mse


class Block(nn.Module):
    """A layer with weights, and one that is known by its place."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.act = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.outer(torch.relu(self.inner(x))))


class Tied(nn.Module):
    """Two blocks, each a module of its own.

    Args:
        shares: the ends of the names of the parameters of which both have the same.
    """

    def __init__(self, shares: tuple[str, ...]) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.blocks = nn.ModuleList([Block(), Block()])
        for name, parameter in self.blocks[0].named_parameters():
            if name.endswith(shares):
                module, _, own = name.rpartition(".")
                setattr(self.blocks[1].get_submodule(module), own, parameter)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def tied(is_one: bool, network: Any, batch: Any):
    x, inner, outer = affine(network.stem, batch[0]), [], []
    for block in network.blocks:
        inner.append(affine(block.inner, x))
        outer.append(x + affine(block.outer, inner[-1] * (inner[-1] > 0)))
        x = torch.tanh(outer[-1])
    y = affine(network.head, x)
    if is_one:
        layers = {"blocks.0.inner": passes(inner), "blocks.0.act": passes(outer)}
    else:
        layers = {f"blocks.{i}.{name}": one(z[i]) for name, z in (("inner", inner), ("act", outer)) for i in (0, 1)}
    return mse_loss(y, batch[1]), {**layers, "head": one(y)}


TIED_CASES = [
    LayerCase("blocks with the same parameters", partial(Tied, ("",)), batch, mse, partial(tied, True)),
    LayerCase("blocks with the same matrices", partial(Tied, ("weight",)), batch, mse, partial(tied, False)),
]
