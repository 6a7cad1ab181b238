"""Outputs that the step overwrites: the layer is the tensor as the network returned it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_psp import PSPCallback
from tests.support.layers.case import LayerCase, cross_entropy, expected, mse_loss, one
from tests.support.layers.cases_logits import CLASSES, labelled, mlp
from tests.support.layers.cases_masks import forbidden, masked, of_the_others
from tests.support.layers.cases_outputs import Trunk, case, trunk
from tests.support.layers.watched import (
    PREFIX,
    assert_gradients,
    assert_layers,
    fit,
    gradients_by_module,
    gradients_by_network,
    gradients_in_lightning,
    logged_layers,
    recorded,
    recorded_layers,
)

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


def doubled(network: nn.Module, batch: Any) -> Tensor:
    y = network(batch[0])
    y.mul_(2)
    return F.mse_loss(y, batch[1])


def twice_the_output(network: Any, batch: Any):
    first, _, y = trunk(network, batch[0])
    return mse_loss(2 * y, batch[1]), {"first": one(first), "head": one(y)}


def by_a_sigmoid(network: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(network(batch[0]).sigmoid_().clamp(min=1e-4), batch[1])


def sigmoid_of_the_output(network: Any, batch: Any):
    first, _, y = trunk(network, batch[0])
    return mse_loss((1 / (1 + (-y).exp())).clamp(min=1e-4), batch[1]), {"first": one(first), "head": one(y)}


def in_part(network: nn.Module, batch: Any) -> Tensor:
    y = network(batch[0])
    y[:, :1] = y[:, :1].tanh()
    return F.mse_loss(y, batch[1])


def tanh_of_a_part(network: Any, batch: Any):
    first, _, y = trunk(network, batch[0])
    values = torch.cat([y[:, :1].tanh(), y[:, 1:]], 1)
    return mse_loss(values, batch[1]), {"first": one(first), "head": one(y)}


class DoubledSquares(nn.Module):
    """A loss that overwrites what it is given."""

    def forward(self, y: Tensor) -> Tensor:
        y.mul_(2)
        return y.square().mean()


def squares_of_twice_the_output(network: Any, batch: Any):
    first, _, y = trunk(network, batch[0])
    return (4 * y**2).mean(), {"first": one(first), "head": one(y)}


class Angles(Trunk):
    """Moves angles, of which its logits are functions past the graph, and computes a loss of multiples of these."""

    def __init__(self) -> None:
        super().__init__(CLASSES)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        z = super().forward(x)
        with torch.no_grad():
            z.atan_().add_(F.one_hot(labels, CLASSES) / 2).cos_()
        return F.cross_entropy(4 * z, labels)


def of_angles(network: Any, batch: Any):
    first, _, y = trunk(network, batch[0])
    cosines = torch.cos(torch.atan(y) + F.one_hot(batch[1], CLASSES) / 2)
    z = cosines.detach() + y - y.detach()
    return cross_entropy(4 * z, batch[1]), {"first": one(first), "?logits": one(z)}


MASKED = LayerCase(
    "masked_fill_", mlp, forbidden, masked(lambda z, mask: z.masked_fill_(mask, -1e9)), of_the_others, outputs=("2",)
)
cases = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case("mul_", Trunk, doubled, twice_the_output), id="mul_"),
        pytest.param(case("sigmoid_", Trunk, by_a_sigmoid, sigmoid_of_the_output), id="sigmoid_"),
        pytest.param(case("tanh of a part", Trunk, in_part, tanh_of_a_part), id="tanh of a part"),
        pytest.param(MASKED, id="masked_fill_"),
        pytest.param(
            LayerCase(
                "past the graph", Angles, labelled, lambda network, batch: network(*batch), of_angles, alone=None
            ),
            id="past the graph",
        ),
        pytest.param(
            case(
                "mul_ in a loss module",
                Trunk,
                lambda network, batch, loss: loss(network(batch[0])),
                squares_of_twice_the_output,
                criterion=DoubledSquares,
            ),
            id="mul_ in a loss module",
        ),
    ],
)


@cases
def test_layers(case):
    wanted = expected(case).mean_squares
    _, trainer = fit(case, PSPCallback(lam=0.5), validates=True)
    assert_layers(logged_layers(trainer), wanted, PREFIX, rel=1e-5)
    assert set(logged_layers(trainer, "val")) == set(logged_layers(trainer))
    assert_layers(recorded_layers(recorded(case)[2], wanted), wanted)
    assert_layers(recorded_layers(recorded(case, by_module=True)[2], wanted, PREFIX), wanted, PREFIX)


@pytest.mark.parametrize("gradients", [gradients_in_lightning, gradients_by_network, gradients_by_module])
@pytest.mark.parametrize("reduction", ["mean", "sum", "squared_mean"])
@cases
def test_gradient(case, reduction, gradients):
    wanted = expected(case, reduction)
    lam = wanted.balanced_lam()
    assert_gradients(gradients(case, reduction, lam), wanted.gradients(lam))
