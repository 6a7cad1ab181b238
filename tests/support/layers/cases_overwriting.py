"""Tensors of a network that are overwritten by linear functions of them, as by encodings of positions: no layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.layers.case import LayerCase, affine, mse_loss, one
from tests.support.layers.cases_outputs import FEATURES, HIDDEN, OUTPUTS, Trunk, batch, mse, trunk

Change = Callable[[Tensor, Tensor], Any]


class Overwriting(nn.Module):
    """Changes the tensor that it is given."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.register_buffer("values", torch.tensor([0.5, -1.0, 2.0, 0.0, 1.5]))
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        self.change(x, self.values[: x.shape[1]])
        return x


class Overwritten(nn.Module):
    """Such modules behind a linear map and in front of a nonlinearity."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.embed, self.hidden, self.head = (
            nn.Linear(FEATURES, HIDDEN),
            nn.Linear(HIDDEN, HIDDEN),
            nn.Linear(HIDDEN, OUTPUTS),
        )
        self.encode, self.prepare = Overwriting(change), Overwriting(change)

    def forward(self, x: Tensor) -> Tensor:
        z = self.hidden(self.encode(self.embed(x)))
        return self.head(F.relu(self.prepare(z)))


class OverwrittenInForward(Overwritten):
    """The same without a call of a module."""

    def forward(self, x: Tensor) -> Tensor:
        first = self.embed(x)
        self.encode.change(first, self.encode.values)
        z = self.hidden(first)
        self.encode.change(z, self.encode.values)
        return self.head(F.relu(z))


def overwritten(hidden: str, changed: Callable[[Tensor, Tensor], Tensor], network: Any, batch: Any):
    values = network.encode.values
    z = changed(affine(network.hidden, changed(affine(network.embed, batch[0]), values)), values)
    y = affine(network.head, z * (z > 0))
    return mse_loss(y, batch[1]), {hidden: one(z), "head": one(y)}


def assign(x: Tensor, values: Tensor) -> None:
    x[(values < 0).expand_as(x)] = 0


def assign_first(x: Tensor, _: Tensor) -> None:
    x[:, 0] = 0


class OverwrittenAtTheEnd(Trunk):
    """Changes what it returns."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.register_buffer("values", torch.tensor([-0.5, 2.0]))
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.change(y, self.values)
        return y


def overwritten_at_the_end(name: str, changed: Callable[[Tensor, Tensor], Tensor], network: Any, batch: Any):
    first, _, y = trunk(network, batch[0])
    returned = changed(y, network.values)
    return mse_loss(returned, batch[1]), {"first": one(first), name: one(returned)}


def multiple_at_the_end(changed: Callable[[Tensor, Tensor], Tensor], network: Any, batch: Any):
    first, _, y = trunk(network, batch[0])
    return mse_loss(changed(y, network.values), batch[1]), {"first": one(first), "head": one(y)}


class PutBack(Trunk):
    """Puts a function of a part of what it returns in the place of that part."""

    def __init__(self, put: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.put = put

    def forward(self, x: Tensor) -> Tensor:
        return self.put(super().forward(x))


def put_back(changed: Callable[[Tensor], Tensor], network: Any, batch: Any):
    first, _, y = trunk(network, batch[0])
    return mse_loss(torch.cat([changed(y[:, :1]), y[:, 1:]], 1), batch[1]), {"first": one(first), "head": one(y)}


def to_a_slice(y: Tensor) -> Tensor:
    y[:, :1] = torch.tanh(y[:, :1])
    return y


def to_entries(y: Tensor) -> Tensor:
    entries = torch.arange(len(y)), torch.zeros(len(y), dtype=torch.long)
    y[entries] = written_out(y[entries])
    return y


def to_a_copy(y: Tensor) -> Tensor:
    copy = y.clone()
    copy[:, :1] = torch.tanh(y[:, :1])
    return copy


def written_out(x: Tensor) -> Tensor:
    """Which the cosine of a sum of angles is like."""
    return 0.8 * x - 0.6 * torch.sqrt(1 + x**2)


def first_column(y: Tensor) -> Tensor:
    return torch.zeros(len(y), 1, dtype=torch.long)


PLACINGS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "assignment to a slice": (to_a_slice, torch.tanh),
    "assignment to entries": (to_entries, written_out),
    "assignment to a copy": (to_a_copy, torch.tanh),
    "scatter": (lambda y: y.scatter(1, first_column(y), torch.tanh(y[:, :1])), torch.tanh),
    "scatter_": (lambda y: y.clone().scatter_(1, first_column(y), torch.tanh(y[:, :1])), torch.tanh),
    "index_copy": (lambda y: y.index_copy(1, torch.tensor([0]), written_out(y[:, :1])), written_out),
}


CHANGES: dict[str, tuple[Change, Callable[[Tensor, Tensor], Tensor], str]] = {
    "sum": (lambda x, values: x.add_(values), lambda x, values: x + values, "relu"),
    "product with data": (lambda x, values: x.mul_(values), lambda x, values: x * values, "hidden"),
    "multiple": (lambda x, _: x.mul_(3), lambda x, _: 3 * x, "hidden"),
    "masked_fill_": (
        lambda x, values: x.masked_fill_(values < 0, 0),
        lambda x, values: x * (values >= 0),
        "hidden",
    ),
    "assignment to a mask": (assign, lambda x, values: x * (values >= 0), "hidden"),
    "assignment to a part": (assign_first, lambda x, _: F.pad(x[:, 1:], (1, 0)), "relu"),
}


MULTIPLES: dict[str, tuple[Change, Callable[[Tensor, Tensor], Tensor]]] = {
    "product with data": (lambda x, values: x.mul_(values), lambda x, values: x * values),
    "multiple": (lambda x, _: x.div_(4), lambda x, _: x / 4),
    "multiple, masked": (
        lambda x, values: x.mul_(3).masked_fill_(values < 0, 0),
        lambda x, values: 3 * x * (values >= 0),
    ),
    "negative of a multiple": (lambda x, _: x.mul_(3).neg_(), lambda x, _: -3 * x),
    "sum with a number": (lambda x, _: x.add_(2), lambda x, _: x + 2),
    "multiple of a part": (lambda x, _: x[:, :1].mul_(3), lambda x, _: torch.cat([3 * x[:, :1], x[:, 1:]], 1)),
}


def _cases(place: str, network: type[Overwritten]) -> list[LayerCase]:
    return [
        LayerCase(
            f"overwritten {place}, {name}", partial(network, change), batch, mse, partial(overwritten, hidden, changed)
        )
        for name, (change, changed, hidden) in CHANGES.items()
    ]


OVERWRITING_CASES = [
    *_cases("by a module", Overwritten),
    *_cases("in a forward", OverwrittenInForward),
    *(
        LayerCase(
            f"overwritten at the end, {name}",
            partial(OverwrittenAtTheEnd, CHANGES[name][0]),
            batch,
            mse,
            partial(overwritten_at_the_end, "?output", CHANGES[name][1]),
            outputs=("?output",),
        )
        for name in ("sum", "assignment to a part")
    ),
    *(
        LayerCase(
            f"overwritten at the end, {name}",
            partial(OverwrittenAtTheEnd, change),
            batch,
            mse,
            partial(multiple_at_the_end, changed),
            outputs=("head",),
        )
        for name, (change, changed) in MULTIPLES.items()
    ),
    *(
        LayerCase(f"a part put back at the end, {name}", partial(PutBack, put), batch, mse, partial(put_back, changed))
        for name, (put, changed) in PLACINGS.items()
    ),
]
