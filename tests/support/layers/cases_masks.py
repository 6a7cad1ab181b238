"""Logits of which a mask takes some out of the loss: the layer is the tensor as it was computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.layers.case import LayerCase, affine, cross_entropy, one
from tests.support.layers.cases_logits import CLASSES, mlp, mlp_potentials
from tests.support.layers.cases_outputs import FEATURES, HIDDEN, Trunk, trunk


def forbidden() -> tuple[Tensor, Tensor, Tensor]:
    """One class of each sample is no choice, never its label."""
    labels = torch.tensor([0, 2, 1, 1])
    return torch.randn(4, FEATURES), labels, F.one_hot((labels + 1) % CLASSES, CLASSES).bool()


def chosen() -> tuple[Tensor, Tensor, Tensor]:
    """Some of the samples have labels."""
    return torch.randn(4, FEATURES), torch.tensor([0, 2, 1, 1]), torch.tensor([True, False, True, True])


def of_the_others(network: Any, batch: Any):
    first, z = mlp_potentials(network, batch[0])
    allowed = (z.exp() * ~batch[2]).sum(1)
    loss = (allowed.log() - z[torch.arange(len(z)), batch[1]]).mean()
    return loss, {"0": one(first), "2": one(z)}


def of_rows(network: Any, batch: Any):
    first, z = mlp_potentials(network, batch[0])
    rows = [0, 2, 3]
    return cross_entropy(z[rows], batch[1][rows]), {"0": one(first), "2": one(z)}


def rows(network: nn.Module, batch: Any) -> Tensor:
    x, labels, mask = batch
    return F.cross_entropy(network(x)[mask], labels[mask])


def masked(mask: Callable[[Tensor, Tensor], Tensor]) -> Callable[[nn.Module, Any], Tensor]:
    return lambda network, batch: F.cross_entropy(mask(network(batch[0]), batch[2]), batch[1])


def assign(z: Tensor, mask: Tensor) -> Tensor:
    z[mask] = -1e9
    return z


def assign_to_parts(z: Tensor, mask: Tensor) -> Tensor:
    z[:2][mask[:2]] = -torch.inf
    z[2:].masked_fill_(mask[2:], -1e9)
    return z


class Masked(nn.Sequential):
    """A network that masks its logits itself, so that some classes are never chosen."""

    def __init__(self, mask: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(*mlp())
        self.mask = mask

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.mask(super().forward(x), mask)


class MaskedLoss(Masked):
    """The same with its loss, which is all that it returns."""

    def forward(self, x: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        return F.cross_entropy(super().forward(x, mask), labels)


class Chosen(Trunk):
    """Adds a token to some of the samples, which data tell, and not to others."""

    def __init__(self, add: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__(CLASSES)
        self.middle, self.token, self.add = nn.Linear(HIDDEN, HIDDEN), nn.Parameter(torch.ones(HIDDEN)), add

    def forward(self, x: Tensor, some: Tensor) -> Tensor:
        return self.head(self.add(self.middle(self.hidden(x)), self.token, some[:, None]))


def with_tokens(network: Any, batch: Any):
    first, h, _ = trunk(network, batch[0])
    z = affine(network.head, affine(network.middle, h) + batch[2][:, None] * network.token)
    return cross_entropy(z, batch[1]), {"first": one(first), "head": one(z)}


def multiple_of_some(network: Any, batch: Any):
    first, z = mlp_potentials(network, batch[0])
    logits = z * (1 + 2 * batch[2][:, None])
    return cross_entropy(logits, batch[1]), {"0": one(first), "?": one(logits)}


MASKS = {
    "masked_fill": lambda z, mask: z.masked_fill(mask, -1e9),
    "masked_fill, infinite": lambda z, mask: z.masked_fill(mask, -torch.inf),
    "where": lambda z, mask: torch.where(mask, -1e9, z),
    "where, infinite": lambda z, mask: torch.where(mask, -torch.inf, z),
    "masked_fill_": lambda z, mask: z.masked_fill_(mask, -1e9),
    "assignment": assign,
    "assignment to parts": assign_to_parts,
}
TOKENS = {
    "where": lambda z, token, some: torch.where(some, z + token, z),
    "method": lambda z, token, some: z.where(~some, z + token),
    "by keyword": lambda z, token, some: torch.where(condition=some, input=z + token, other=z),
}
MASK_CASES = [
    *(
        LayerCase(f"masked logits, {name}", mlp, forbidden, masked(mask), of_the_others, outputs=("2",))
        for name, mask in MASKS.items()
    ),
    *(
        LayerCase(
            f"masked logits inside, {name}",
            partial(Masked, mask),
            forbidden,
            lambda network, batch: F.cross_entropy(network(batch[0], batch[2]), batch[1]),
            of_the_others,
            outputs=("2",),
            alone=None,
        )
        for name, mask in MASKS.items()
    ),
    *(
        LayerCase(
            f"masked logits and loss inside, {name}",
            partial(MaskedLoss, MASKS[name]),
            forbidden,
            lambda network, batch: network(*batch),
            of_the_others,
            outputs=("2",),
            alone=None,
        )
        for name in ("masked_fill", "assignment", "assignment to parts")
    ),
    *(
        LayerCase(
            f"token added to some samples, {name}",
            partial(Chosen, add),
            chosen,
            lambda network, batch: F.cross_entropy(network(batch[0], batch[2]), batch[1]),
            with_tokens,
            alone=None,
        )
        for name, add in TOKENS.items()
    ),
    LayerCase(
        "multiple of the logits of some samples",
        mlp,
        chosen,
        lambda network, batch: F.cross_entropy(
            (lambda z: torch.where(batch[2][:, None], 3.0 * z, z))(network(batch[0])), batch[1]
        ),
        multiple_of_some,
        outputs=("?",),
        alone=None,
    ),
    LayerCase("logits of some samples", mlp, chosen, rows, of_rows, outputs=("2",)),
]
