"""Activations that overwrite their input, and losses, inside of activation checkpoints."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_psp import PSPCallback
from tests.support.cases.checkpoints import KINDS
from tests.support.layers.activations import Swish, swish
from tests.support.layers.case import LayerCase, affine, cross_entropy, expected, mse_loss, one
from tests.support.layers.cases_logits import labelled, mlp, of_logits
from tests.support.layers.cases_outputs import FEATURES, HIDDEN, OUTPUTS, batch, mse
from tests.support.layers.watched import (
    PREFIX,
    assert_gradients,
    assert_layers,
    fit,
    gradients_by_network,
    logged_layers,
    recorded,
    recorded_layers,
)

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


def swish_(x: Tensor) -> Tensor:
    return x.mul_(x.sigmoid())


class SwishInPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(torch.sigmoid(x))


class Block(nn.Module):
    def __init__(self, act: Any) -> None:
        super().__init__()
        self.up, self.down, self.act = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN), act

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(x)))


class Network(nn.Module):
    """Two blocks of one kind, run as checkpoints."""

    def __init__(self, act: Any, reentrant: bool) -> None:
        super().__init__()
        self.embed, self.head, self.reentrant = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, OUTPUTS), reentrant
        self.blocks = nn.ModuleList(Block(act()) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


def blocks(network: Any, batch: Any):
    x = affine(network.embed, batch[0])
    layers = {}
    for number, block in enumerate(network.blocks):
        z = affine(block.up, x)
        layers[f"blocks.{number}.up"] = one(z)
        x = x + affine(block.down, swish(None, z))
    y = affine(network.head, x)
    return mse_loss(y, batch[1]), {**layers, "head": one(y)}


def loss_of_multiple(network: nn.Module, batch: Any, reentrant: bool) -> Tensor:
    return checkpoint(lambda z, y: F.cross_entropy(z / 2, y), network(batch[0]), batch[1], use_reentrant=reentrant)


def loss_of_view(network: nn.Module, batch: Any, reentrant: bool) -> Tensor:
    z, labels = network(batch[0]), batch[1]
    return checkpoint(lambda z, y: F.cross_entropy(z.view(-1, 3) * 2, y), z, labels, use_reentrant=reentrant)


def loss_of_chunks(network: nn.Module, batch: Any, reentrant: bool) -> Tensor:
    pairs = zip(network(batch[0]).split(2), batch[1].split(2), strict=True)
    losses = [checkpoint(partial(F.cross_entropy, reduction="sum"), z, y, use_reentrant=reentrant) for z, y in pairs]
    return torch.stack(losses).sum() / len(batch[1])


ACTS = {
    "function": lambda: swish_,
    "module": SwishInPlace,
    "module of methods": partial(Swish, True),
}
LOSSES = {
    "loss of a multiple": (loss_of_multiple, lambda z, y: cross_entropy(z / 2, y)),
    "loss of a view": (loss_of_view, lambda z, y: cross_entropy(2 * z, y)),
    "loss of chunks": (loss_of_chunks, cross_entropy),
}


def checkpoint_case(name: str, reentrant: bool) -> LayerCase:
    if name in ACTS:
        return LayerCase(name, partial(Network, ACTS[name], reentrant), batch, mse, blocks)
    loss, written_out = LOSSES[name]
    return LayerCase(name, mlp, labelled, partial(loss, reentrant=reentrant), of_logits(written_out), outputs=("2",))


names = pytest.mark.parametrize("name", [*ACTS, *LOSSES])


@pytest.mark.parametrize("reduction", ["mean", "sum", "squared_mean"])
@names
@KINDS
def test_in_lightning(name, reentrant, reduction):
    case = checkpoint_case(name, reentrant)
    wanted = expected(case, reduction)
    lam = wanted.balanced_lam()

    module, trainer = fit(case, PSPCallback(lam=lam, reduction=reduction))

    assert_gradients(module.gradients[0], wanted.gradients(lam))
    assert_layers(logged_layers(trainer), wanted.mean_squares, PREFIX, rel=1e-5)


@names
def test_recorded(name):
    case = checkpoint_case(name, False)
    wanted = expected(case)
    lam = wanted.balanced_lam()
    assert_layers(recorded_layers(recorded(case)[2], wanted.mean_squares), wanted.mean_squares)
    assert_gradients(gradients_by_network(case, "mean", lam), wanted.gradients(lam))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@names
@KINDS
def test_layers_of_a_validation_run_are_those_of_training(name, reentrant):
    case = checkpoint_case(name, reentrant)
    _, trainer = fit(case, PSPCallback(lam=0.5, entropy=()), validates=True)
    assert set(logged_layers(trainer, "val")) == set(logged_layers(trainer, "train"))
