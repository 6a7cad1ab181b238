"""Frozen weights between what is trained and the loss are of the network."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.layers.case import LayerCase, mse_loss, one
from tests.support.layers.cases_distributions import softplus
from tests.support.layers.cases_logits import mlp, mlp_potentials
from tests.support.layers.cases_outputs import BATCH, FEATURES, HIDDEN


class Perceptual(nn.Module):
    """Makes an image; another network, which is not trained, judges it."""

    def __init__(self) -> None:
        super().__init__()
        self.maker, self.judge = mlp(FEATURES), mlp(HIDDEN).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.maker(x)


def images() -> tuple[Tensor, Tensor]:
    return torch.randn(BATCH, FEATURES), torch.randn(BATCH, FEATURES)


def perceived(network: Any, batch: Any) -> Tensor:
    y = network(batch[0])
    with torch.no_grad():
        target = network.judge(batch[1])
    return F.mse_loss(y, batch[1]) + F.mse_loss(network.judge(y), target)


def perceptual(network: Any, batch: Any):
    first, y = mlp_potentials(network.maker, batch[0])
    seen, judged = mlp_potentials(network.judge, y)
    target = mlp_potentials(network.judge, batch[1])[1]
    layers = {"maker.0": one(first), "maker.2": one(y), "judge.0": one(seen)}
    return mse_loss(y, batch[1]) + mse_loss(judged, target), layers


class Adversaries(nn.Module):
    """A generator, and a discriminator that does not learn in this step."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.discriminator = mlp(FEATURES), mlp(1).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.generator(x)


def fooled(network: Any, batch: Any) -> Tensor:
    return F.softplus(-network.discriminator(network(batch[0]))).mean()


def adversaries(network: Any, batch: Any):
    first, fake = mlp_potentials(network.generator, batch[0])
    seen, logit = mlp_potentials(network.discriminator, fake)
    layers = {"generator.0": one(first), "discriminator.0": one(seen), "discriminator.2": one(logit)}
    return softplus(-logit).mean(), layers


FROZEN_CASES = [
    LayerCase(
        "perceptual loss",
        Perceptual,
        images,
        perceived,
        perceptual,
        outputs=("maker.2",),
        alone=None,
        validates=False,
    ),
    LayerCase(
        "frozen discriminator",
        Adversaries,
        images,
        fooled,
        adversaries,
        outputs=("discriminator.2",),
        alone=None,
    ),
]
