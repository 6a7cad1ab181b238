"""Networks that compute their losses themselves, a cross-entropy and a distance of another head."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.layers.case import LayerCase, affine, cross_entropy, one
from tests.support.layers.cases_logits import CLASSES
from tests.support.layers.cases_outputs import BATCH, FEATURES, HIDDEN, OUTPUTS, Trunk, trunk

Distance = Callable[[Tensor, Tensor], Tensor]


class Detector(Trunk):
    """A class and a box for each sample."""

    def __init__(self, distance: Distance, act: Callable[[Tensor], Tensor], gives: str) -> None:
        super().__init__(CLASSES)
        self.box, self.distance, self.act, self.gives = nn.Linear(HIDDEN, OUTPUTS), distance, act, gives

    def forward(self, x: Tensor, labels: Tensor | None = None, boxes: Tensor | None = None) -> Any:
        h = self.hidden(x)
        z, box = self.head(h), self.act(self.box(h))
        if labels is None:
            return z, box
        losses = {"class": F.cross_entropy(z, labels), "box": self.distance(box, boxes)}
        if self.gives == "losses":
            return losses
        total = losses["class"] + losses["box"]
        return total if self.gives == "sum" else {"loss": total, "logits": z, "box": box}


def detected(written_out: Distance, act: Callable[[Tensor], Tensor], network: Any, batch: Any):
    first, h, z = trunk(network, batch[0])
    box = affine(network.box, h)
    loss = cross_entropy(z, batch[1]) + written_out(act(box) - batch[2])
    return loss, {"first": one(first), "head": one(z), "box": one(box)}


def objects() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(BATCH, FEATURES), torch.randint(CLASSES, (BATCH,)), torch.randn(BATCH, OUTPUTS)


def smooth(difference: Tensor) -> Tensor:
    size = difference.abs()
    return torch.where(size < 1, size**2 / 2, size - 0.5).mean()


DISTANCES = {
    "MSE": (F.mse_loss, lambda difference: (difference**2).mean()),
    "L1": (F.l1_loss, lambda difference: difference.abs().mean()),
    "smooth L1": (F.smooth_l1_loss, smooth),
}
GIVES: dict[str, Callable[[nn.Module, Any], Tensor]] = {
    "losses": lambda network, batch: sum(network(*batch).values()),
    "sum": lambda network, batch: network(*batch),
    "loss and outputs": lambda network, batch: network(*batch)["loss"],
}


def same(z: Tensor) -> Tensor:
    return z


def detector(name: str, distance: str, gives: str, act: Any = same, act_written_out: Any = same) -> LayerCase:
    function, written_out = DISTANCES[distance]
    return LayerCase(
        f"losses inside, {name}",
        partial(Detector, function, act, gives),
        objects,
        GIVES[gives],
        partial(detected, written_out, act_written_out),
        outputs=("head", "box"),
    )


class Values(Trunk):
    """What each of some choices is worth, of which a loss takes what was chosen, changed somehow."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(CLASSES)
        self.change = change

    def forward(self, x: Tensor, wanted: Tensor) -> Any:
        values = super().forward(x)
        return F.mse_loss(self.change(values).sum(1, keepdim=True), wanted), values


def changed(change: Callable[[Tensor], Tensor]) -> Callable[[Any, Any], Any]:
    def reference(network: Any, batch: Any):
        first, _, values = trunk(network, batch[0])
        loss = ((change(values).sum(1, keepdim=True) - batch[1]) ** 2).mean()
        return loss, {"first": one(first), "head": one(values)}

    return reference


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "gathered": lambda y: y.gather(1, torch.ones(len(y), 1, dtype=torch.int64)),
    "sliced": lambda y: y[:, 1:],
    "rounded": lambda y: y + (y.round() - y).detach(),
    "advantages": lambda y: y[:, :1] + y[:, 1:] - y[:, 1:].mean(1, keepdim=True),
}


class Energy(Trunk):
    """A classifier that gives its loss alone: a cross-entropy, and a hinge on the logits."""

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        z = super().forward(x)
        return F.cross_entropy(z, labels) + F.relu(4.0 - torch.logsumexp(z, 1)).square().mean()


def energy(network: Any, batch: Any):
    first, _, z = trunk(network, batch[0])
    loss = cross_entropy(z, batch[1]) + ((4.0 - z.exp().sum(1).log()).clamp(min=0) ** 2).mean()
    return loss, {"first": one(first), "head": one(z)}


class SumHead(nn.Module):
    """A prediction that no module gives, and its distance from what it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(HIDDEN, OUTPUTS), nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, h: Tensor, wanted: Tensor) -> Tensor:
        return F.mse_loss(self.one(h) + self.other(h), wanted)


class SumHeads(Trunk):
    """Gives the sum of the losses of two heads, and of two predictions of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList([SumHead(), SumHead()])
        self.more = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor, wanted: Tensor) -> Tensor:
        h = self.hidden(x)
        losses = [head(h, wanted) for head in self.heads]
        return sum(losses) + F.l1_loss(self.head(h) + self.more(h), wanted) + F.l1_loss(self.head(h) * h[:, :1], wanted)


def sum_heads(network: Any, batch: Any):
    first, h, y = trunk(network, batch[0])
    sums = [affine(head.one, h) + affine(head.other, h) for head in network.heads]
    own = [y + affine(network.more, h), y * h[:, :1]]
    loss = sum(((z - batch[1]) ** 2).mean() for z in sums) + sum((z - batch[1]).abs().mean() for z in own)
    names = ("heads.0.mse_loss", "heads.1.mse_loss", "l1_loss", "l1_loss:1")
    return loss, {"first": one(first), **dict(zip(names, map(one, [*sums, *own]), strict=True))}


class Likelihood(Trunk):
    """Gives how likely each class is that it is told, in one of several ways, or the mean of that."""

    def __init__(self, chosen: Callable[[Tensor, Tensor], Tensor], gives_mean: bool) -> None:
        super().__init__(CLASSES)
        self.chosen, self.gives_mean = chosen, gives_mean

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        likelihood = self.chosen(F.log_softmax(super().forward(x), -1), labels)
        return likelihood.mean() if self.gives_mean else likelihood


def likelihood(network: Any, batch: Any):
    first, _, z = trunk(network, batch[0])
    return cross_entropy(z, batch[1]), {"first": one(first), "head": one(z)}


CHOSEN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gathered": lambda logarithms, labels: logarithms.gather(-1, labels[:, None]).squeeze(-1),
    "indexed": lambda logarithms, labels: logarithms[torch.arange(len(labels)), labels],
    "masked": lambda logarithms, labels: (logarithms * F.one_hot(labels, CLASSES)).sum(-1),
}


class Adaptive(nn.Module):
    """Frequent classes have logits of their own, rare ones share one of these and are told apart by a further head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, HIDDEN)
        self.head = nn.AdaptiveLogSoftmaxWithLoss(HIDDEN, 4, [2], div_value=1)

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        return self.head(torch.relu(self.first(x)), labels)


def adaptive(network: Any, batch: Any):
    x, labels = batch
    first = affine(network.first, x)
    h = first * (first > 0)
    is_rare = labels > 1
    frequent = h @ network.head.head.weight.mT
    rare = h[is_rare] @ network.head.tail[0][0].weight.mT @ network.head.tail[0][1].weight.mT
    loss = (
        cross_entropy(frequent, labels.clamp(max=2))
        + cross_entropy(rare, labels[is_rare] - 2) * is_rare.double().mean()
    )
    return loss, {"first": one(first), "head.head": one(frequent), "head.tail.0.1": one(rare)}


class Masks(Trunk):
    """Scores each place of a map and of a finer one, and compares the latter with masks in two ways."""

    def __init__(self) -> None:
        super().__init__(4)

    def forward(self, x: Tensor, masks: Tensor) -> Any:
        coarse = super().forward(x)
        fine = (coarse[..., None] + coarse[:, None]).unsqueeze(1)
        scores = fine[:, 0].flatten(1)
        overlap = (scores.sigmoid() * masks).sum(1) / (scores.sigmoid() + masks).sum(1)
        return F.binary_cross_entropy_with_logits(scores, masks) - overlap.mean(), coarse


def masked(network: Any, batch: Any):
    first, _, coarse = trunk(network, batch[0])
    z = coarse[..., None] + coarse[:, None]
    p = 1 / (1 + (-z.flatten(1)).exp())
    entropies = -batch[1] * p.log() - (1 - batch[1]) * (1 - p).log()
    loss = entropies.mean() - ((p * batch[1]).sum(1) / (p + batch[1]).sum(1)).mean()
    return loss, {"first": one(first), "?fine": one(z.unsqueeze(1))}


INNER_LOSS_CASES = [
    *(
        LayerCase(
            f"likelihood inside, {name}, {'mean' if gives_mean else 'of each sample'}",
            partial(Likelihood, chosen, gives_mean),
            lambda: objects()[:2],
            lambda network, batch: -network(*batch).mean(),
            likelihood,
            alone=None,
        )
        for name, chosen in CHOSEN.items()
        for gives_mean in (True, False)
    ),
    LayerCase(
        "adaptive softmax",
        Adaptive,
        lambda: (torch.randn(BATCH, FEATURES), torch.arange(BATCH) % 4),
        lambda network, batch: network(*batch).loss,
        adaptive,
        outputs=("head.head", "head.tail.0.1"),
        reductions=("mean",),
        alone=None,
    ),
    LayerCase(
        "losses inside, two of one map",
        Masks,
        lambda: (torch.randn(BATCH, FEATURES), torch.randint(2, (BATCH, 16)).double()),
        lambda network, batch: network(*batch)[0],
        masked,
        outputs=("?fine",),
        reductions=("mean",),
        alone=None,
    ),
    LayerCase(
        "losses inside, of sums",
        SumHeads,
        lambda: (torch.randn(BATCH, FEATURES), torch.randn(BATCH, OUTPUTS)),
        lambda network, batch: network(*batch),
        sum_heads,
        outputs=("heads.0.mse_loss", "heads.1.mse_loss", "l1_loss", "l1_loss:1"),
        alone=None,
    ),
    *(
        LayerCase(
            f"losses inside, {name}",
            partial(Values, change),
            lambda: (torch.randn(BATCH, FEATURES), torch.randn(BATCH, 1)),
            lambda network, batch: network(*batch)[0],
            changed(change),
            alone=None,
        )
        for name, change in CHANGES.items()
    ),
    LayerCase(
        "losses inside, hinge on logits",
        partial(Energy, CLASSES),
        lambda: objects()[:2],
        lambda network, batch: network(*batch),
        energy,
        alone=None,
    ),
    *(detector(distance, distance, "losses") for distance in DISTANCES),
    *(detector(gives, "smooth L1", gives) for gives in ("sum", "loss and outputs")),
    detector("L1 of a ReLU", "L1", "losses", F.relu, lambda z: z * (z > 0)),
    detector("L1 of exp", "L1", "losses", torch.exp, lambda z: torch.sinh(z) + torch.cosh(z)),
]
