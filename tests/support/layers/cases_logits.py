"""Logits that enter the loss several times, in parts or changed, and losses of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.layers.case import LayerCase, affine, cross_entropy, one, passes
from tests.support.layers.cases_distributions import softplus
from tests.support.layers.cases_outputs import BATCH, FEATURES, HIDDEN, Trunk, trunk

CLASSES = 3


def mlp(outputs: int = CLASSES) -> nn.Sequential:
    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, outputs))


def mlp_potentials(network: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    z = affine(network[0], x)
    return z, affine(network[2], torch.tanh(z))


def labelled() -> tuple[Tensor, Tensor]:
    return torch.randn(BATCH, FEATURES), torch.randint(CLASSES, (BATCH,))


def marked() -> tuple[Tensor, Tensor]:
    """Several yes or no for each sample."""
    return torch.randn(BATCH, FEATURES), torch.randint(2, (BATCH, CLASSES)).double()


def tokens() -> tuple[Tensor, Tensor]:
    return torch.randn(BATCH, 4, FEATURES), torch.randint(CLASSES, (BATCH, 4))


class Clip(nn.Module):
    """Two towers, and how similar what they give is."""

    def __init__(self, gives_logits: bool) -> None:
        super().__init__()
        self.image, self.text, self.gives_logits = mlp(), mlp(), gives_logits

    def forward(self, images: Tensor, texts: Tensor) -> Any:
        a, b = self.image(images), self.text(texts)
        return a @ b.T if self.gives_logits else (a, b)


def both_ways(transpose: Callable[[Tensor], Tensor], network: nn.Module, batch: Any) -> Tensor:
    found = network(*batch)
    logits = found if isinstance(found, Tensor) else found[0] @ found[1].T
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(transpose(logits), labels)) / 2


def clip(network: Any, batch: Any):
    image, a = mlp_potentials(network.image, batch[0])
    text, b = mlp_potentials(network.text, batch[1])
    logits = torch.stack([(a * row).sum(-1) for row in b], 1)
    diagonal = logits.diagonal()
    loss = (torch.logsumexp(logits, 1) - diagonal).mean() + (torch.logsumexp(logits, 0) - diagonal).mean()
    return loss / 2, {"image.0": one(image), "text.0": one(text), "?logits": one(logits)}


TRANSPOSES = {
    ".T": lambda z: z.T,
    ".mT": lambda z: z.mT,
    ".H": lambda z: z.H,
    ".t()": lambda z: z.t(),
    "transpose": lambda z: z.transpose(0, 1),
}


def clip_case(name: str, transpose: Callable[[Tensor], Tensor], gives_logits: bool) -> LayerCase:
    return LayerCase(
        f"logits and their {name}, {'made inside' if gives_logits else 'made in the step'}",
        partial(Clip, gives_logits),
        lambda: (torch.randn(BATCH, FEATURES), torch.randn(BATCH, FEATURES)),
        partial(both_ways, transpose),
        clip,
        outputs=("?logits",),
        reductions=("mean",),
        alone=None,
    )


class Distilled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = mlp(), mlp()


def distil(network: Any, batch: Any, temperature: float = 2.0) -> Tensor:
    x, labels = batch
    z = network.student(x)
    with torch.no_grad():
        target = network.teacher(x)
    soft = F.kl_div((z / temperature).log_softmax(1), (target / temperature).softmax(1), reduction="batchmean")
    return F.cross_entropy(z, labels) + temperature**2 * soft


def distilled(network: Any, batch: Any):
    x, labels = batch
    first, z = mlp_potentials(network.student, x)
    target = mlp_potentials(network.teacher, x)[1].detach() / 2
    probabilities = target.exp() / target.exp().sum(1, keepdim=True)
    found = z / 2 - torch.logsumexp(z / 2, 1, keepdim=True)
    soft = (probabilities * (probabilities.log() - found)).sum(1).mean()
    return cross_entropy(z, labels) + 4 * soft, {"student.0": one(first), "student.2": one(z)}


def of_logits(loss: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """A reference where the network is one hidden layer and logits."""

    def reference(network: Any, batch: Any):
        first, z = mlp_potentials(network, batch[0])
        return loss(z, batch[1]), {"0": one(first), "2": one(z)}

    return reference


def signed(z: Tensor, y: Tensor) -> Tensor:
    return softplus(-z * (2 * y - 1)).mean()


def binary(z: Tensor, y: Tensor) -> Tensor:
    return (softplus(z) - z * y).mean()


def focal(z: Tensor, y: Tensor) -> Tensor:
    p = 1 / (1 + (-z * (2 * y - 1)).exp())
    return (-((1 - p) ** 2) * p.log()).mean()


def focal_step(network: nn.Module, batch: Any) -> Tensor:
    z, y = network(batch[0]), batch[1]
    p = torch.sigmoid(z)
    right = p * y + (1 - p) * (1 - y)
    return (F.binary_cross_entropy_with_logits(z, y, reduction="none") * (1 - right) ** 2).mean()


def focal_of_signed(network: nn.Module, batch: Any) -> Tensor:
    z = network(batch[0]) * (2 * batch[1] - 1)
    return (-((1 - z.sigmoid()) ** 2) * F.logsigmoid(z)).mean()


def each_class(network: nn.Module, batch: Any) -> Tensor:
    z = network(batch[0])
    of_class = [F.binary_cross_entropy_with_logits(z[:, c], batch[1][:, c]) for c in range(CLASSES)]
    return torch.stack(of_class).mean()


def with_entropy(network: nn.Module, batch: Any) -> Tensor:
    z = network(batch[0])
    return F.cross_entropy(z, batch[1]) - 0.1 * (z.softmax(1) * z.log_softmax(1)).sum(1).mean()


def cross_entropy_and_entropy(z: Tensor, labels: Tensor) -> Tensor:
    logs = z - torch.logsumexp(z, 1, keepdim=True)
    return cross_entropy(z, labels) - 0.1 * (logs.exp() * logs).sum(1).mean()


class Images(nn.Module):
    """Gives the logits of each image on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp()

    def forward(self, x: Tensor) -> list[Tensor]:
        z = self.layers(x)
        return [z[image] for image in range(len(z))]


def each_image(network: nn.Module, batch: Any) -> Tensor:
    pairs = zip(network(batch[0]), batch[1], strict=True)
    return torch.stack([F.cross_entropy(z, labels) for z, labels in pairs]).mean()


def images(network: Any, batch: Any):
    first, z = mlp_potentials(network.layers, batch[0])
    return cross_entropy(z, batch[1]), {"layers.0": one(first), "layers.2": one(z)}


class Language(Trunk):
    """Computes its loss in chunks: of the logits, or of what the head is given."""

    def __init__(self, of_hidden: bool) -> None:
        super().__init__(CLASSES)
        self.of_hidden = of_hidden

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        h = self.hidden(x).flatten(0, 1)
        if labels is None:
            return self.head(h)
        chunks = [self.head(part) for part in h.split(5)] if self.of_hidden else self.head(h).split(5)
        pairs = zip(chunks, labels.flatten().split(5), strict=True)
        return sum(F.cross_entropy(z, y, reduction="sum") for z, y in pairs) / labels.numel()


def language(network: Any, batch: Any):
    first = affine(network.first, batch[0])
    z = affine(network.head, torch.tanh(first)).flatten(0, 1)
    chunks = passes(z.split(5)) if network.of_hidden else one(z)
    return cross_entropy(z, batch[1].flatten()), {"first": one(first), "head": chunks}


@dataclass
class Answer:
    loss: Tensor | None
    start: Tensor
    end: Tensor


class Spans(Trunk):
    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor, starts: Tensor | None = None, ends: Tensor | None = None) -> Any:
        start, end = super().forward(x).split(1, dim=-1)
        start, end = start.squeeze(-1).contiguous(), end.squeeze(-1).contiguous()
        loss = None
        if starts is not None:
            loss = (F.cross_entropy(start, starts) + F.cross_entropy(end, ends)) / 2
        return Answer(loss, start, end)


def spans(network: Any, batch: Any):
    first, _, z = trunk(network, batch[0])
    loss = (cross_entropy(z[..., 0], batch[1]) + cross_entropy(z[..., 1], batch[2])) / 2
    return loss, {"first": one(first), "head": one(z)}


class Hinge(nn.Module):
    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return F.relu(1 - z * (2 * y - 1)).mean()


class SoftplusAndTanh(nn.Module):
    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return (F.softplus(z) - z * y).mean() + 0.1 * torch.tanh(z).square().mean()


def hinge(z: Tensor, y: Tensor) -> Tensor:
    margin = 1 - z * (2 * y - 1)
    return (margin * (margin > 0)).mean()


class HingeInside(Trunk):
    def __init__(self) -> None:
        super().__init__(CLASSES)
        self.criterion = Hinge()

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        z = super().forward(x)
        return z if y is None else (self.criterion(z, y), z)


def hinge_inside(network: Any, batch: Any):
    first, _, z = trunk(network, batch[0])
    return hinge(z, batch[1]), {"first": one(first), "head": one(z)}


class MixedHinge(nn.Module):
    """A loss with fixed numbers that it calls its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.eye(CLASSES) + 0.125)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return F.relu(1 - (z * (2 * y - 1)) @ self.weight.to(z)).mean()


def mixed_hinge(z: Tensor, y: Tensor) -> Tensor:
    signed = z * (2 * y - 1)
    return (1 - signed - signed.sum(1, keepdim=True) / 8).clamp(min=0).mean()


def by_criterion(network: nn.Module, batch: Any, criterion: nn.Module) -> Tensor:
    return criterion(network(batch[0]), batch[1])


def logits_case(name: str, step: Any, loss: Any, batch: Any = marked, **further: Any) -> LayerCase:
    return LayerCase(name, mlp, batch, step, of_logits(loss), outputs=("2",), **further)


LOGIT_CASES = [
    *(clip_case(name, transpose, True) for name, transpose in TRANSPOSES.items()),
    clip_case(".T", TRANSPOSES[".T"], False),
    LayerCase(
        "distillation",
        Distilled,
        labelled,
        distil,
        distilled,
        outputs=("student.2",),
        alone=None,
        validates=False,
    ),
    logits_case("negative", lambda net, batch: F.softplus(-net(batch[0])).mean(), lambda z, y: softplus(-z).mean()),
    logits_case("logsigmoid", lambda net, batch: -F.logsigmoid(-net(batch[0])).mean(), lambda z, y: softplus(z).mean()),
    logits_case("signed", lambda net, batch: F.softplus(-net(batch[0]) * (2 * batch[1] - 1)).mean(), signed),
    logits_case(
        "signed, logsigmoid",
        lambda net, batch: -F.logsigmoid(net(batch[0]) * (2 * batch[1] - 1)).mean(),
        signed,
    ),
    logits_case("focal loss", focal_step, focal),
    logits_case("focal loss of signed logits", focal_of_signed, focal),
    logits_case("each class", each_class, binary),
    logits_case(
        "temperature",
        lambda net, batch: F.cross_entropy(net(batch[0]) / 0.5, batch[1]),
        lambda z, y: cross_entropy(2 * z, y),
        labelled,
    ),
    logits_case("with their entropy", with_entropy, cross_entropy_and_entropy, labelled),
    logits_case(
        "each token",
        lambda net, batch: F.cross_entropy(net(batch[0]).transpose(1, 2), batch[1]),
        cross_entropy,
        tokens,
    ),
    logits_case(
        "each sample, mapped",
        lambda net, batch: torch.vmap(lambda z, y: -(z.log_softmax(0) * y).sum())(net(batch[0]), batch[1]).mean(),
        lambda z, y: ((torch.logsumexp(z, 1, keepdim=True) - z) * y).sum(1).mean(),
    ),
    logits_case("each image in the step", each_image, cross_entropy, tokens),
    LayerCase("each image inside", Images, tokens, each_image, images, outputs=("layers.2",)),
    LayerCase(
        "chunks of logits",
        partial(Language, False),
        tokens,
        lambda network, batch: network(*batch),
        language,
        reductions=("mean", "sum"),
    ),
    LayerCase(
        "chunks of the head's input",
        partial(Language, True),
        tokens,
        lambda network, batch: network(*batch),
        language,
        reductions=("mean", "sum"),
    ),
    LayerCase(
        "start and end",
        Spans,
        lambda: (torch.randn(BATCH, 4, FEATURES), torch.randint(4, (BATCH,)), torch.randint(4, (BATCH,))),
        lambda network, batch: network(*batch).loss,
        spans,
    ),
    logits_case("hinge in the step", lambda net, batch: Hinge()(net(batch[0]), batch[1]), hinge),
    logits_case("hinge as criterion", by_criterion, hinge, criterion=Hinge),
    logits_case("criterion with a buffer", by_criterion, mixed_hinge, criterion=MixedHinge),
    logits_case(
        "criterion with two nonlinearities",
        by_criterion,
        lambda z, y: binary(z, y) + 0.1 * (torch.tanh(z) ** 2).mean(),
        criterion=SoftplusAndTanh,
    ),
    LayerCase("hinge inside", HingeInside, marked, lambda network, batch: network(*batch)[0], hinge_inside),
]
