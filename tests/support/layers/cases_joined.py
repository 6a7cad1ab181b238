"""Logits that a step joins: of several calls, which are passes of one layer, and with constants beside them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.layers.case import LayerCase, affine, cross_entropy, one, passes
from tests.support.layers.cases_distributions import softplus
from tests.support.layers.cases_logits import labelled, mlp, mlp_potentials
from tests.support.layers.cases_outputs import BATCH, FEATURES, HIDDEN

JOININGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cat": lambda a, b: torch.cat([a, b]),
    "cat of classes": lambda a, b: torch.cat((a, b), dim=1),
    "stack": lambda a, b: torch.stack([a, b], 1).flatten(0, 1),
    "cat of views": lambda a, b: torch.cat([a.reshape(-1, 1), -b.reshape(-1, 1)]).view(2, -1),
}


def labelled_twice() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(BATCH, FEATURES), torch.randn(BATCH, FEATURES), torch.randint(2, (2 * BATCH,))


def joined(join: Callable[[Tensor, Tensor], Tensor], is_beside: bool, network: nn.Module, batch: Any) -> Tensor:
    """A loss of the logits of two calls together, and one that compares the two."""
    left, right = network(batch[0]), network(batch[1])
    z = join(left, right)
    loss = F.cross_entropy(z, batch[2][: len(z)])
    return loss + F.kl_div(left.log_softmax(-1), right.softmax(-1), reduction="sum") if is_beside else loss


def of_two_calls(join: Callable[[Tensor, Tensor], Tensor], is_beside: bool, network: Any, batch: Any):
    (first, left), (second, right) = (mlp_potentials(network, x) for x in batch[:2])
    p, q = (z - torch.logsumexp(z, -1, keepdim=True) for z in (left, right))
    z = join(left, right)
    loss = cross_entropy(z, batch[2][: len(z)]) + is_beside * (q.exp() * (q - p)).sum()
    return loss, {"0": passes([first, second]), "2": passes([left, right])}


def criticised(network: nn.Module, batch: Any) -> Tensor:
    """The loss of a critic that judges generated and real samples in two calls, and all of them together."""
    return F.softplus(torch.cat([-network(batch[0]), network(batch[1])])).mean()


def critic(network: Any, batch: Any):
    (first, left), (second, right) = (mlp_potentials(network, x) for x in batch[:2])
    loss = softplus(torch.cat([-left, right])).mean()
    return loss, {"0": passes([first, second]), "2": passes([left, right])}


def of_probabilities(network: nn.Module, batch: Any) -> Tensor:
    """A loss of the probabilities of two calls, which reads them twice, and one of the logits of the first."""
    left, right = network(batch[0]), network(batch[1])
    p = torch.cat([left, right]).sigmoid()
    targets = batch[2][:, None].expand_as(p).to(p.dtype)
    loss = F.binary_cross_entropy(p, targets) + F.binary_cross_entropy(p.flip(0), targets)
    return loss + F.binary_cross_entropy_with_logits(left, targets[: len(left)])


def probabilities(network: Any, batch: Any):
    (first, left), (second, right) = (mlp_potentials(network, x) for x in batch[:2])
    z, targets = torch.cat([left, right]), batch[2][:, None]
    loss = (softplus(z) - targets * z).mean() + (softplus(z.flip(0)) - targets * z.flip(0)).mean()
    loss = loss + (softplus(left) - targets[: len(left)] * left).mean()
    return loss, {"0": passes([first, second]), "2": passes([left, right])}


def beside_a_constant(network: nn.Module, batch: Any) -> Tensor:
    """Logits with that of a further class, which is always 0."""
    z = network(batch[0])
    return F.cross_entropy(torch.cat([z, torch.zeros_like(z[:, :1])], 1), batch[1])


def beside_zero(network: Any, batch: Any):
    first, z = mlp_potentials(network, batch[0])
    loss = cross_entropy(torch.cat([z, 0 * z[:, :1].detach()], 1), batch[1])
    return loss, {"0": one(first), "2": one(z)}


class TwoHeads(nn.Module):
    """Logits of two heads, which the step joins: neurons of two kinds, and one softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(FEATURES, HIDDEN)
        self.left, self.right = nn.Linear(HIDDEN, 2), nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.body(x))
        return self.left(h), self.right(h)


def of_heads(network: Any, batch: Any):
    z = affine(network.body, batch[0])
    h = torch.tanh(z)
    y = torch.cat([affine(network.left, h), affine(network.right, h)], 1)
    return cross_entropy(y, batch[1]), {"body": one(z), "?logits": one(y)}


JOINED_CASES = [
    *(
        LayerCase(
            f"logits of two calls, {name}{', and each of them' if is_beside else ''}",
            mlp,
            labelled_twice,
            partial(joined, join, is_beside),
            partial(of_two_calls, join, is_beside),
            outputs=("2",),
            alone=None,
        )
        for name, join in JOININGS.items()
        for is_beside in (True, False)
    ),
    LayerCase("softplus of two calls", mlp, labelled_twice, criticised, critic, outputs=("2",), alone=None),
    LayerCase(
        "probabilities of two calls", mlp, labelled_twice, of_probabilities, probabilities, outputs=("2",), alone=None
    ),
    LayerCase("logits beside a constant", mlp, labelled, beside_a_constant, beside_zero, outputs=("2",)),
    LayerCase(
        "logits of two heads, joined in the step",
        TwoHeads,
        labelled,
        lambda network, batch: F.cross_entropy(torch.cat(network(batch[0]), 1), batch[1]),
        of_heads,
        outputs=("?logits",),
        reductions=("mean",),
        alone=None,
    ),
]
