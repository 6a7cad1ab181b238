"""Losses that are written out: inside a network that gives nothing else, and of pairs in the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.layers.case import LayerCase, affine, one
from tests.support.layers.cases_distributions import softplus
from tests.support.layers.cases_logits import CLASSES, Clip, labelled, mlp, mlp_potentials, of_logits, tokens
from tests.support.layers.cases_outputs import BATCH, FEATURES, HIDDEN, OUTPUTS, Trunk, batch, plain, trunk

Loss = Callable[[Tensor, Tensor], Tensor]


class WrittenOut(Trunk):
    """Gives its loss alone."""

    def __init__(self, loss: Loss) -> None:
        super().__init__(CLASSES)
        self.loss = loss

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.loss(super().forward(x), labels)


def written_out(loss: Loss, network: Any, batch: Any):
    first, _, z = trunk(network, batch[0])
    return loss(z, batch[1]), {"first": one(first), "head": one(z)}


def exponentials(z: Tensor) -> Tensor:
    return z.exp() / z.exp().sum(-1, keepdim=True)


def of_label(z: Tensor, labels: Tensor) -> Tensor:
    return z.gather(-1, labels[:, None])


# The loss of the network, and the same without a softmax or sigmoid of torch.
INSIDE: dict[str, tuple[Loss, Loss]] = {
    "the logarithm of a softmax": (
        lambda z, y: -of_label(torch.log((z / 0.5).softmax(-1) + 1e-9), y).mean(),
        lambda z, y: -of_label((exponentials(2 * z) + 1e-9).log(), y).mean(),
    ),
    "the logarithm of a softmax above a bound": (
        lambda z, y: -of_label(z.softmax(-1).clamp(min=1e-9).log(), y).mean(),
        lambda z, y: -of_label(exponentials(z).log(), y).mean(),
    ),
    "a focal loss": (
        lambda z, y: -of_label((1 - z.softmax(-1)) * torch.log(z.softmax(-1)), y).mean(),
        lambda z, y: -of_label((1 - exponentials(z)) * exponentials(z).log(), y).mean(),
    ),
    "a softplus of signed logits": (
        lambda z, y: F.softplus(z * torch.where(y > 0, 1.0, -1.0)[:, None]).masked_fill((y == 2)[:, None], 0.0).mean(),
        lambda z, y: (softplus(z * (2.0 * (y > 0) - 1)[:, None]) * (y != 2)[:, None]).mean(),
    ),
}


class Similar(Clip):
    """Two towers, and a scale and a bias for how similar what they give is."""

    def __init__(self) -> None:
        super().__init__(gives_logits=False)
        self.scale, self.bias = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(-1.0))

    def forward(self, images: Tensor, texts: Tensor) -> Any:
        return *super().forward(images, texts), self.scale.exp(), self.bias


def signs() -> Tensor:
    return 2 * torch.eye(BATCH, dtype=torch.float64) - 1


def pairs_in_the_step(network: nn.Module, batch: Any) -> Tensor:
    a, b, scale, bias = network(*batch)
    return -F.logsigmoid(signs() * (scale * a @ b.T + bias)).sum() / BATCH


def pairs(network: Any, batch: Any):
    image, a = mlp_potentials(network.image, batch[0])
    text, b = mlp_potentials(network.text, batch[1])
    z = network.scale.exp() * torch.stack([(a * row).sum(-1) for row in b], 1) + network.bias
    loss = softplus(-signs() * z).sum() / BATCH
    return loss, {"image.0": one(image), "text.0": one(text), "?logits": one(z)}


class Preferring(Trunk):
    """Gives how much one of two scores should be above the other one."""

    def __init__(self, gives_scores: bool) -> None:
        super().__init__(2)
        self.gives_scores = gives_scores

    def forward(self, x: Tensor) -> Tensor:
        scores = super().forward(x)
        return scores if self.gives_scores else preference(scores, 1.0)


def preference(scores: Tensor, sharpness: float) -> Tensor:
    return -F.logsigmoid(sharpness * (scores[:, 0] - scores[:, 1])).mean()


def preferring(sharpness: float, network: Any, batch: Any):
    first, _, scores = trunk(network, batch[0])
    z = scores[:, 0] - scores[:, 1]
    return softplus(-z * sharpness).mean(), {"first": one(first), "?difference": one(z)}


class Variance(Trunk):
    """Gives its loss: the distance of a mean, and a function of a variance that a nonlinearity bounds."""

    def __init__(self) -> None:
        super().__init__(4)

    def forward(self, x: Tensor, wanted: Tensor) -> Tensor:
        mean, variance = super().forward(x).chunk(2, -1)
        return F.mse_loss(mean, wanted) + (torch.tanh((-variance).exp()) * wanted).mean()


def variance(network: Any, batch: Any):
    first, _, z = trunk(network, batch[0])
    size = (-2 * (-z[:, 2:]).exp()).exp()
    loss = ((z[:, :2] - batch[1]) ** 2).mean() + ((1 - size) / (1 + size) * batch[1]).mean()
    return loss, {"first": one(first), "head": one(z)}


class GivenOtherwise(Trunk):
    """Gives its loss, the prediction, perhaps in another shape or type than the loss has it in, and hidden values."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(OUTPUTS)
        self.change = change

    def forward(self, x: Tensor, wanted: Tensor) -> Any:
        h = self.hidden(x)
        z = self.head(h)
        return (z - wanted).square().mean(), self.change(z), h


OTHERWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda z: z,
    "flat": lambda z: z.view(-1),
    "transposed": lambda z: z.unsqueeze(0).mT,
    "single": lambda z: z.float(),
}


class Likely(Trunk):
    """Gives the negative logarithm of a likelihood, its mean and its scale, each reshaped, and the hidden values."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor, wanted: Tensor) -> Any:
        h = self.hidden(x)
        mean, raw = self.head(h), self.scale(h)
        scale = (raw + torch.sqrt(raw**2 + 4)) / 2
        loss = -torch.distributions.Normal(mean, scale).log_prob(wanted).mean()
        return loss, (mean.view(-1), scale.view(-1)), h


def likely(network: Any, batch: Any):
    first, h, mean = trunk(network, batch[0])
    raw = affine(network.scale, h)
    scale = (raw + (raw**2 + 4).sqrt()) / 2
    loss = (((batch[1] - mean) / scale) ** 2 / 2 + scale.log() + math.log(2 * math.pi) / 2).mean()
    return loss, {"first": one(first), "head": one(mean), "scale": one(raw)}


class Scored(nn.Module):
    """Two vectors, each multiplied with two maps of one batch after the other."""

    def __init__(self, multiply: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.multiply = multiply
        self.v, self.w = nn.Parameter(torch.randn(FEATURES)), nn.Parameter(torch.randn(FEATURES))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores = [torch.tanh(self.multiply(part, vector)) for vector in (self.v, self.w) for part in (x, x.flip(-1))]
        return self.head(torch.stack(scores, -1))


def scored(network: Any, batch: Any):
    x, wanted = batch
    found = {name: [(part * v).sum(-1) for part in (x, x.flip(-1))] for name, v in (("v", network.v), ("w", network.w))}
    y = affine(network.head, torch.tanh(torch.stack([*found["v"], *found["w"]], -1)))
    layers = {name: [[z] for z in passes] for name, passes in found.items()}
    return ((y - wanted) ** 2).mean(), {**layers, "head": one(y)}


def masked(overwrite: Callable[[Tensor, Tensor], Any], loss: Callable[..., Tensor], network: Any, batch: Any) -> Tensor:
    """Overwrites losses of tokens, which torch gives as a view."""
    found = loss(network(batch[0]).transpose(1, 2), batch[1], reduction="none")
    overwrite(found, batch[1] > 0)
    return found.mean()


def of_some_tokens(z: Tensor, y: Tensor) -> Tensor:
    return ((torch.logsumexp(z, -1) - z.gather(-1, y[..., None])[..., 0]) * (y > 0)).mean()


MASKED: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[..., Tensor], tuple[nn.Module, ...]]] = {
    "multiplied": (lambda losses, mask: losses.mul_(mask), F.cross_entropy, ()),
    "assigned": (lambda losses, mask: losses.__setitem__(~mask, 0.0), F.cross_entropy, ()),
    "of logarithms": (lambda losses, mask: losses.mul_(mask), F.nll_loss, (nn.LogSoftmax(-1),)),
}


def by_exponentials(z: Tensor, y: Tensor) -> Tensor:
    return of_label(z.flatten(0, 1), y.flatten()).view_as(y) - torch.stack([row.logsumexp(-1) for row in z])


def by_distribution(z: Tensor, y: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=z).log_prob(y)


# Logarithms of likelihoods of tokens.
LIKELIHOODS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[nn.Module, ...]]] = {
    "log_softmax": (lambda z, y: z.log_softmax(-1).gather(-1, y[..., None])[..., 0], ()),
    "logsumexp": (by_exponentials, ()),
    "a distribution": (by_distribution, ()),
    "cross_entropy": (lambda z, y: -F.cross_entropy(z.transpose(1, 2), y, reduction="none"), ()),
    "a network that ends in them": (lambda z, y: z.gather(-1, y[..., None])[..., 0], (nn.LogSoftmax(-1),)),
}


def likelier(likelihoods: Callable[[Tensor, Tensor], Tensor], network: Any, batch: Any) -> Tensor:
    """A preference of the first half of each sentence to the second, by how likely these are."""
    x, y = batch
    chosen, other = (likelihoods(network(x[:, part]), y[:, part]).sum(-1) for part in (slice(2), slice(2, None)))
    return -F.logsigmoid(0.1 * (chosen - other)).mean()


def of_likelier(z: Tensor, y: Tensor) -> Tensor:
    found = z.gather(-1, y[..., None])[..., 0] - torch.logsumexp(z, -1)
    return softplus(-0.1 * (found[:, :2] - found[:, 2:]).sum(-1)).mean()


VECTORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "x @ v": lambda x, v: x @ v,
    "mv": torch.mv,
    "einsum": lambda x, v: torch.einsum("bi,i->b", x, v),
}

WRITTEN_LOSS_CASES = [
    *(
        LayerCase(
            f"a loss written out inside, the prediction is returned {name}",
            partial(GivenOtherwise, change),
            batch,
            lambda network, batch: network(*batch)[0],
            plain,
            alone=None,
        )
        for name, change in OTHERWISE.items()
    ),
    LayerCase(
        "a likelihood inside, its parameters are returned reshaped",
        Likely,
        batch,
        lambda network, batch: network(*batch)[0],
        likely,
        outputs=("head", "scale"),
        alone=None,
    ),
    *(
        LayerCase(
            f"a loss written out inside, {name}",
            partial(WrittenOut, loss),
            labelled,
            lambda network, batch: network(*batch),
            partial(written_out, without),
            alone=None,
        )
        for name, (loss, without) in INSIDE.items()
    ),
    LayerCase(
        "signed similarities of pairs",
        Similar,
        lambda: (torch.randn(BATCH, FEATURES), torch.randn(BATCH, FEATURES)),
        pairs_in_the_step,
        pairs,
        outputs=("?logits",),
        reductions=("mean",),
        alone=None,
    ),
    *(
        LayerCase(
            f"a preference, {'in the step' if gives_scores else 'inside'}",
            partial(Preferring, gives_scores),
            lambda: (torch.randn(BATCH, FEATURES),),
            lambda network, batch: preference(found, 0.5) if (found := network(*batch)).ndim else found,
            partial(preferring, 0.5 if gives_scores else 1.0),
            outputs=("?difference",),
            reductions=("mean",),
            alone=None,
        )
        for gives_scores in (True, False)
    ),
    *(
        LayerCase(
            f"a preference of the likelier, by {name}",
            lambda further=further: nn.Sequential(*mlp(), *further),
            tokens,
            partial(likelier, likelihoods),
            of_logits(of_likelier),
            outputs=("2",),
            reductions=("mean", "sum"),
        )
        for name, (likelihoods, further) in LIKELIHOODS.items()
    ),
    LayerCase(
        "a loss inside, and a bounded function of another part of the output",
        Variance,
        lambda: (torch.randn(BATCH, FEATURES), torch.randn(BATCH, 2)),
        lambda network, batch: network(*batch),
        variance,
        alone=None,
    ),
    *(
        LayerCase(
            f"vectors as weights, {name}",
            partial(Scored, multiply),
            lambda: (torch.randn(BATCH, FEATURES), torch.randn(BATCH, 2)),
            lambda network, batch: F.mse_loss(network(batch[0]), batch[1]),
            scored,
            reductions=("mean",),
        )
        for name, multiply in VECTORS.items()
    ),
    *(
        LayerCase(
            f"losses of tokens masked in place, {name}",
            lambda further=further: nn.Sequential(*mlp(), *further),
            tokens,
            partial(masked, overwrite, loss),
            of_logits(of_some_tokens),
            outputs=("2",),
            reductions=("mean", "sum"),
        )
        for name, (overwrite, loss, further) in MASKED.items()
    ),
]
