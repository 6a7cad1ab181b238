"""Probabilities and scales that a network returns or makes distributions of, and policies with a scale of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, Normal

from tests.support.layers.case import LayerCase, affine, cross_entropy, one
from tests.support.layers.cases_distributions import (
    Moments,
    as_it_is,
    categorical,
    likelihood,
    log_prob,
    normal_loss,
    softplus,
    two,
)
from tests.support.layers.cases_logits import CLASSES, labelled
from tests.support.layers.cases_outputs import BATCH, FEATURES, HIDDEN, OUTPUTS, Trunk, case, trunk


class Probabilities(Trunk):
    """Ends in a softmax, and may make a distribution of it."""

    def __init__(self, make: Callable[[Tensor], Any] = as_it_is) -> None:
        super().__init__(CLASSES)
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(super().forward(x).softmax(-1))


class Mixture(Trunk):
    """Several normal distributions of one value, and how much each of them weighs."""

    def __init__(self) -> None:
        super().__init__(CLASSES)
        self.weights = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x)
        return MixtureSameFamily(Categorical(probs=self.weights(h).softmax(-1)), Normal(self.head(h), 1.0))


def mixture(network: Any, batch: Any):
    first, h, means = trunk(network, batch[0])
    z = affine(network.weights, h)
    shares = z.exp() / z.exp().sum(-1, keepdim=True)
    densities = (-0.5 * (batch[1][:, None] - means) ** 2).exp() / math.sqrt(2 * math.pi)
    layers = {"first": one(first), "head": one(means), "weights": one(z)}
    return -(shares * densities).sum(-1).log().mean(), layers


class Shares(Trunk):
    """Returns how much each of several normal distributions weighs, and their means."""

    def __init__(self) -> None:
        super().__init__(CLASSES)
        self.weights = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x)
        return self.weights(h).softmax(-1), self.head(h)


def mixture_in_the_step(network: nn.Module, batch: Any) -> Tensor:
    shares, means = network(batch[0])
    return -MixtureSameFamily(Categorical(shares), Normal(means, 1.0)).log_prob(batch[1]).mean()


class TwoSoftmaxes(Shares):
    """Two heads that each end in a softmax, behind an attention over the hidden units."""

    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x)
        h = (h[:, :, None] * h[:, None]).softmax(-1) @ h[:, :, None]
        return self.weights(h[..., 0]).softmax(-1), self.head(h[..., 0]).softmax(-1)


def two_softmaxes(network: Any, batch: Any):
    first, h, _ = trunk(network, batch[0])
    weights = (h[:, :, None] * h[:, None]).exp()
    h = (weights / weights.sum(-1, keepdim=True) @ h[:, :, None])[..., 0]
    heads = affine(network.weights, h), affine(network.head, h)
    loss = sum(cross_entropy(z, batch[1]) for z in heads)
    return loss, {"first": one(first), "weights": one(heads[0]), "head": one(heads[1])}


class Binary(Trunk):
    """Probabilities, joined somehow with what is made of them."""

    def __init__(self, join: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.join = join

    def forward(self, x: Tensor) -> Any:
        return self.join(super().forward(x).sigmoid())


def joined(join: Callable[[Tensor], Tensor]) -> Callable[[Any, Any], Any]:
    def reference(network: Any, batch: Any):
        first, _, z = trunk(network, batch[0])
        return join(1 / (1 + (-z).exp())).square().mean(), {"first": one(first), "head": one(z)}

    return reference


def mean_square(network: nn.Module, batch: Any) -> Tensor:
    return network(batch[0]).square().mean()


JOINS: dict[str, Callable[[Tensor], Tensor]] = {
    "with their complements": lambda p: torch.cat([p, 1 - p], 1),
    "stacked": lambda p: torch.stack([p, p]),
}


def of_probabilities(network: nn.Module, batch: Any) -> Tensor:
    return -Categorical(network(batch[0])).log_prob(batch[1]).mean()


class Scaled(Moments):
    """Returns the scale itself, made of a head of its own."""

    def __init__(self, scale: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Any:
        mean, raw = super().forward(x)
        return mean, self.scale(raw)


class Policy(Trunk):
    """A mean made of the state, and a scale that is a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.linspace(-0.4, 0.3, OUTPUTS))

    def forward(self, x: Tensor) -> Any:
        return Normal(Trunk.forward(self, x), self.log_std.exp())


class ExpandedScale(Policy):
    def forward(self, x: Tensor) -> Any:
        mean = Trunk.forward(self, x)
        return mean, self.log_std.exp().expand_as(mean)


class ExpandedLogScale(Policy):
    def forward(self, x: Tensor) -> Any:
        mean = Trunk.forward(self, x)
        return mean, self.log_std.expand_as(mean)


def policy(network: Any, batch: Any):
    first, _, mean = trunk(network, batch[0])
    return normal_loss(mean, math.e**network.log_std, batch[1]), {"first": one(first), "head": one(mean)}


def squareplus(raw: Tensor) -> Tensor:
    """As libraries of forecasting make scales and degrees of freedom positive."""
    return (raw + torch.sqrt(torch.square(raw) + 4.0)) / 2.0


def _labels(name: str, network: Any, step: Any) -> LayerCase:
    return LayerCase(name, network, labelled, step, categorical)


def _scaled(name: str, scale: Callable[[Tensor], Tensor], written_out: Callable[[Tensor], Tensor]) -> LayerCase:
    network, reference = partial(Scaled, scale), partial(two, scale=written_out)
    return case(f"returned scale, {name}", network, likelihood(as_it_is, as_it_is), reference, outputs=("head", "raw"))


def gaussian(network: nn.Module, batch: Any) -> Tensor:
    mean, raw = network(batch[0]).unbind(-1)
    return F.gaussian_nll_loss(mean, batch[1], F.softplus(raw) + 0.25)


def gaussian_written_out(network: Any, batch: Any):
    first, _, y = trunk(network, batch[0])
    variance = softplus(y[:, 1]) + 0.25
    loss = 0.5 * (variance.log() + (y[:, 0] - batch[1]) ** 2 / variance).mean()
    return loss, {"first": one(first), "head": one(y)}


def numbers() -> tuple[Tensor, Tensor]:
    return torch.randn(BATCH, FEATURES), torch.randn(BATCH)


PROBABILITY_CASES = [
    LayerCase("mean and variance of one head", partial(Trunk, 2), numbers, gaussian, gaussian_written_out),
    _labels("returned probabilities, Categorical in the step", Probabilities, of_probabilities),
    _labels("returned Categorical of probabilities", partial(Probabilities, Categorical), log_prob),
    LayerCase(
        "returned mixture of probabilities",
        Mixture,
        numbers,
        log_prob,
        mixture,
        outputs=("head", "weights"),
    ),
    LayerCase(
        "returned probabilities, mixture in the step",
        Shares,
        numbers,
        mixture_in_the_step,
        mixture,
        outputs=("head", "weights"),
    ),
    LayerCase(
        "returned probabilities of two heads",
        TwoSoftmaxes,
        labelled,
        lambda network, batch: sum(F.nll_loss(p.log(), batch[1]) for p in network(batch[0])),
        two_softmaxes,
        outputs=("head", "weights"),
    ),
    *(
        case(f"returned probabilities, {name}", partial(Binary, join), mean_square, joined(join))
        for name, join in JOINS.items()
    ),
    _scaled("exp", torch.exp, lambda raw: math.e**raw),
    _scaled("exp of half", lambda raw: torch.exp(0.5 * raw), lambda raw: (math.e**raw) ** 0.5),
    _scaled("squareplus", squareplus, lambda raw: 2 / ((raw**2 + 4) ** 0.5 - raw)),
    _scaled(
        "squareplus of a view",
        lambda raw: (2.0 + squareplus(raw[..., None])).squeeze(-1),
        lambda raw: 2.0 + 2 / ((raw**2 + 4) ** 0.5 - raw),
    ),
    _scaled("product with itself", lambda raw: raw * raw + 0.5, lambda raw: raw**2 + 0.5),
    case("policy with a scale of its own", Policy, log_prob, policy),
    case("policy with a scale of its own, expanded", ExpandedScale, likelihood(as_it_is, as_it_is), policy),
    case("policy with a scale of its own, logarithm", ExpandedLogScale, likelihood(as_it_is, torch.exp), policy),
]
