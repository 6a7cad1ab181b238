"""Outputs that are parameters of a distribution."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import AffineTransform, Bernoulli, Categorical, Independent, Normal, TransformedDistribution

from tests.support.layers.case import LayerCase, affine, cross_entropy, one
from tests.support.layers.cases_outputs import BATCH, FEATURES, HIDDEN, OUTPUTS, Trunk, case, trunk


def normal_loss(mean: Tensor, scale: Tensor, y: Tensor) -> Tensor:
    return (0.5 * ((y - mean) / scale) ** 2 + scale.log() + 0.5 * math.log(2 * math.pi)).mean()


def softplus(x: Tensor) -> Tensor:
    return (1 + x.exp()).log()


def scale_of(moments: Any) -> tuple[Tensor, Tensor]:
    mean, raw = moments
    return mean, F.softplus(raw)


class Moments(Trunk):
    """Location and raw scale from heads of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x)
        return self.head(h), self.raw(h)


class ReturnsScale(Moments):
    def forward(self, x: Tensor) -> Any:
        return scale_of(super().forward(x))


class ReturnsNormal(Moments):
    def forward(self, x: Tensor) -> Any:
        return Normal(*scale_of(Moments.forward(self, x)))


class ReturnsIndependent(Moments):
    def forward(self, x: Tensor) -> Any:
        return {"prior": None, "posterior": Independent(Normal(*scale_of(Moments.forward(self, x))), 1)}


class ReturnsTransformed(Moments):
    def forward(self, x: Tensor) -> Any:
        mean, scale = scale_of(Moments.forward(self, x))
        return TransformedDistribution(Normal(torch.zeros_like(mean), 1.0), [AffineTransform(mean, scale)])


class OneHead(Trunk):
    def __init__(self) -> None:
        super().__init__(2 * OUTPUTS)


class OneHeadScale(OneHead):
    def forward(self, x: Tensor) -> Any:
        return scale_of(super().forward(x).chunk(2, -1))


class OneHeadNormal(OneHead):
    def forward(self, x: Tensor) -> Any:
        return Normal(*scale_of(OneHead.forward(self, x).chunk(2, -1)))


def two(network: Any, batch: Any, scale: Any = softplus, moments: int = 1):
    first, h, mean = trunk(network, batch[0])
    raw = affine(network.raw, h)
    layers = {"first": one(first), "head": one(mean), "raw": one(raw)}
    return normal_loss(mean, scale(raw), batch[1]) * moments, layers


def halves(network: Any, batch: Any, scale: Any = softplus):
    first, _, y = trunk(network, batch[0])
    mean, raw = y[:, :OUTPUTS], y[:, OUTPUTS:]
    return normal_loss(mean, scale(raw), batch[1]), {"first": one(first), "head": one(y)}


def likelihood(split: Any, scale: Any = F.softplus) -> Any:
    """A step that makes the distribution of what the network returns."""

    def step(network: nn.Module, batch: Any) -> Tensor:
        mean, raw = split(network(batch[0]))
        return -Normal(mean, scale(raw)).log_prob(batch[1]).mean()

    return step


def as_it_is(returned: Any) -> Any:
    return returned


def log_prob(network: nn.Module, batch: Any) -> Tensor:
    return -network(batch[0]).log_prob(batch[1]).mean()


def log_prob_of_independent(network: nn.Module, batch: Any) -> Tensor:
    return -network(batch[0])["posterior"].log_prob(batch[1]).mean()


class Labels(Trunk):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(logits=super().forward(x))


def categorical(network: Any, batch: Any):
    first, _, y = trunk(network, batch[0])
    return cross_entropy(y, batch[1]), {"first": one(first), "head": one(y)}


def bernoulli(network: Any, batch: Any):
    first, _, y = trunk(network, batch[0])
    return (softplus(y) - y * batch[1]).mean(), {"first": one(first), "head": one(y)}


class Autoencoder(nn.Module):
    """A variational autoencoder that is given its noise."""

    def __init__(self, heads: int = 2, gives_losses: bool = False) -> None:
        super().__init__()
        self.first, self.decode = nn.Linear(FEATURES, HIDDEN), nn.Linear(2, HIDDEN)
        self.heads, self.gives_losses = heads, gives_losses
        if heads == 1:
            self.moments = nn.Linear(HIDDEN, 4)
        else:
            self.mu, self.logvar = nn.Linear(HIDDEN, 2), nn.Linear(HIDDEN, 2)
        self.head = nn.Linear(HIDDEN, FEATURES)

    def forward(self, x: Tensor, noise: Tensor) -> Any:
        h = torch.relu(self.first(x))
        mu, logvar = self.moments(h).chunk(2, -1) if self.heads == 1 else (self.mu(h), self.logvar(h))
        recon = self.head(torch.relu(self.decode(mu + noise * torch.exp(0.5 * logvar))))
        if not self.gives_losses:
            return recon, mu, logvar
        distance = (recon - x).square().sum(-1)
        divergence = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(-1)
        return {"recon": recon, "mu": mu, "logvar": logvar, "losses": distance + divergence}


def evidence(network: nn.Module, batch: Any) -> Tensor:
    recon, mu, logvar = network(*batch)
    divergence = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return F.mse_loss(recon, batch[0], reduction="sum") + divergence


def mean_evidence(network: nn.Module, batch: Any) -> Tensor:
    return network(*batch)["losses"].mean()


def autoencoder(network: Any, batch: Any):
    x, noise = batch
    first = affine(network.first, x)
    h = first * (first > 0)
    if network.heads == 1:
        moments = affine(network.moments, h)
        mu, logvar = moments[:, :2], moments[:, 2:]
        layers = {"moments": one(moments)}
    else:
        mu, logvar = affine(network.mu, h), affine(network.logvar, h)
        layers = {"mu": one(mu), "logvar": one(logvar)}
    decode = affine(network.decode, mu + noise * (logvar / 2).exp())
    y = affine(network.head, decode * (decode > 0))
    losses = ((y - x) ** 2).sum(-1) + 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(-1)
    loss = losses.mean() if network.gives_losses else losses.sum()
    return loss, {"first": one(first), "decode": one(decode), "head": one(y), **layers}


def noisy() -> tuple[Tensor, Tensor]:
    return torch.randn(BATCH, FEATURES), torch.randn(BATCH, 2)


def vae(name: str, network: Any, step: Any, outputs: tuple[str, ...]) -> LayerCase:
    return LayerCase(name, network, noisy, step, autoencoder, outputs=outputs, alone=None)


def mixture(y: Tensor, target: Tensor, sigmoid: Any, log_softmax: Any) -> Tensor:
    """Of two logistic distributions, of which each gives a bin the difference of two sigmoids."""
    weights, locations, raw = y.chunk(3, -1)
    distance, sharpness = target[:, :1] - locations, torch.exp(-raw)
    inside = sigmoid((distance + 0.5) * sharpness) - sigmoid((distance - 0.5) * sharpness)
    return -torch.logsumexp(log_softmax(weights) + inside.log(), -1).mean()


def own_log_softmax(z: Tensor) -> Tensor:
    return z - z.exp().sum(-1, keepdim=True).log()


def mixture_in_the_step(log_softmax: Any) -> Any:
    return lambda network, batch: mixture(network(batch[0]), batch[1], torch.sigmoid, log_softmax)


def mixture_by_hand(network: Any, batch: Any):
    first, _, y = trunk(network, batch[0])
    loss = mixture(y, batch[1], lambda z: 1 / (1 + (-z).exp()), own_log_softmax)
    return loss, {"first": one(first), "head": one(y)}


def rendered(colour: Tensor, density: Tensor, target: Tensor) -> Tensor:
    return ((colour * (1 - torch.exp(-density)) - target[:, :1]) ** 2).mean()


def rendered_in_the_step(network: nn.Module, batch: Any) -> Tensor:
    y = torch.cat([network(row[None]) for row in batch[0]])
    return rendered(torch.sigmoid(y[:, :1]), F.relu(y[:, 1:] + 2), batch[1])


def rendered_by_hand(network: Any, batch: Any):
    first, _, y = trunk(network, batch[0])
    colour, density = y.chunk(2, -1)
    return rendered(1 / (1 + (-colour).exp()), (density + 2).clamp(min=0), batch[1]), {
        "first": one(first),
        "head": one(y),
    }


DISTRIBUTION_CASES = [
    case(
        "mixture of logistics", partial(Trunk, 6), mixture_in_the_step(partial(F.log_softmax, dim=-1)), mixture_by_hand
    ),
    case("mixture of logistics, own softmax", partial(Trunk, 6), mixture_in_the_step(own_log_softmax), mixture_by_hand),
    case("colour and density of joined calls", Trunk, rendered_in_the_step, rendered_by_hand),
    case("Normal in the step, chunks", OneHead, likelihood(lambda y: y.chunk(2, -1)), halves),
    case("Normal in the step, slices", OneHead, likelihood(lambda y: (y[:, :OUTPUTS], y[..., OUTPUTS:])), halves),
    case(
        "Normal in the step, exp",
        OneHead,
        likelihood(lambda y: y.chunk(2, -1), torch.exp),
        partial(halves, scale=torch.exp),
    ),
    case("Normal in the step, two heads", Moments, likelihood(as_it_is), two, outputs=("head", "raw")),
    case("scale by softplus inside", ReturnsScale, likelihood(as_it_is, as_it_is), two, outputs=("head", "raw")),
    case("scale by softplus inside, chunks", OneHeadScale, likelihood(as_it_is, as_it_is), halves),
    case("returned Normal", ReturnsNormal, log_prob, two, outputs=("head", "raw")),
    case("returned transform of a distribution", ReturnsTransformed, log_prob, two, outputs=("head", "raw")),
    case("returned Normal, chunks", OneHeadNormal, log_prob, halves),
    case(
        "returned Independent in a dict",
        ReturnsIndependent,
        log_prob_of_independent,
        partial(two, moments=OUTPUTS),
        outputs=("head", "raw"),
    ),
    LayerCase(
        "returned Categorical",
        partial(Labels, Categorical),
        lambda: (torch.randn(BATCH, FEATURES), torch.randint(OUTPUTS, (BATCH,))),
        log_prob,
        categorical,
    ),
    LayerCase(
        "returned Bernoulli",
        partial(Labels, Bernoulli),
        lambda: (torch.randn(BATCH, FEATURES), torch.randint(2, (BATCH, OUTPUTS)).double()),
        log_prob,
        bernoulli,
    ),
    vae("autoencoder", Autoencoder, evidence, ("head", "mu", "logvar")),
    vae("autoencoder, one head", partial(Autoencoder, 1), evidence, ("head", "moments")),
    vae("autoencoder, losses of samples", partial(Autoencoder, 2, True), mean_evidence, ("head", "mu", "logvar")),
]
