"""Steps that call the parts of a network one after another, where one of them returns a term of the loss, too."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.layers.case import LayerCase, affine, mse_loss, one
from tests.support.layers.cases_outputs import FEATURES, HIDDEN, OUTPUTS, batch


class Gated(nn.Module):
    """Returns its values and how unevenly its gates are open."""

    def __init__(self, width: int, values: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, values), nn.Linear(width, values)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gates = self.gate(x).sigmoid()
        return gates * self.up(x), gates.mean(0).square().sum()


class Encoded(nn.Module):
    """An encoder whose last layer is linear, what is gated, and a head."""

    def __init__(self, values: int) -> None:
        super().__init__()
        self.encoder, self.gated = nn.Linear(FEATURES, HIDDEN), Gated(HIDDEN, values)
        self.head = nn.Linear(values, OUTPUTS)


def ends_gated(network: Any, batch: Any) -> Tensor:
    y, unevenness = network.gated(network.encoder(batch[0]))
    return F.mse_loss(y, batch[1]) + 0.1 * unevenness


def has_head(network: Any, batch: Any) -> Tensor:
    values, unevenness = network.gated(network.encoder(batch[0]))
    return F.mse_loss(network.head(values), batch[1]) + 0.1 * unevenness


def keeps_codes_small(network: Any, batch: Any) -> Tensor:
    codes = network.encoder(batch[0])
    y, unevenness = network.gated(codes)
    return F.mse_loss(y, batch[1]) + 0.1 * unevenness + codes.square().mean()


def encoded(network: Any, batch: Any, head: bool = False, codes_too: bool = False):
    codes = affine(network.encoder, batch[0])
    gate = affine(network.gated.gate, codes)
    gates = 1 / (1 + (-gate).exp())
    y = gates * affine(network.gated.up, codes)
    layers = {"gated.gate": one(gate)}
    if head:
        y = affine(network.head, y)
    layers |= {"head" if head else "gated": one(y)}
    loss = mse_loss(y, batch[1]) + 0.1 * gates.mean(0).square().sum()
    if codes_too:
        loss, layers = loss + codes.square().mean(), layers | {"encoder": one(codes)}
    return loss, layers


def case(name: str, step: Any, outputs: tuple[str, ...], **further: Any) -> LayerCase:
    width = HIDDEN if further.get("head") else OUTPUTS
    return LayerCase(name, partial(Encoded, width), batch, step, partial(encoded, **further), outputs, alone=None)


CALLED_PART_CASES = [
    case("part returns a term beside the prediction", ends_gated, ("gated",)),
    case("part returns a term, and a head follows", has_head, ("head",), head=True),
    case("part returns a term, and the loss uses its input", keeps_codes_small, ("gated", "encoder"), codes_too=True),
]
