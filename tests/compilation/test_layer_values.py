"""A compiled step computes what it does without the callback: the user's own loss, and its gradient."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_psp import PSPCallback
from tests.support.compiled import COMPILED, graphs, network_by_method, step
from tests.support.layers.case import LayerCase, affine, expected, one
from tests.support.layers.cases_distributions import Moments
from tests.support.layers.cases_outputs import case, trunk
from tests.support.layers.table import BY_NAME
from tests.support.layers.watched import PREFIX, assert_gradients, assert_layers, fit, logged_layers

pytestmark = COMPILED


class Broadcast(Moments):
    def forward(self, x: Tensor) -> Any:
        return torch.broadcast_tensors(*super().forward(x))


def square_and_sum(network: nn.Module, batch: Any, in_step: bool) -> Tensor:
    found = network(batch[0])
    mean, raw = torch.broadcast_tensors(*found) if in_step else found
    return (mean.square() + raw).mean()


def both(network: Any, batch: Any):
    first, h, mean = trunk(network, batch[0])
    raw = affine(network.raw, h)
    return (mean**2).mean() + raw.mean(), {"first": one(first), "head": one(mean), "raw": one(raw)}


CASES: list[LayerCase] = [
    case("broadcast in the step", Moments, partial(square_and_sum, in_step=True), both),
    case("broadcast in the network", Broadcast, partial(square_and_sum, in_step=False), both),
    BY_NAME["Normal in the step, two heads"],
    BY_NAME["Normal in the step, exp"],
    BY_NAME["returned Normal"],
]


@pytest.mark.parametrize("weight", [0.0, 1.0], ids=["watched", "penalised"])
@pytest.mark.parametrize("compile_part", [step, network_by_method])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_loss_and_gradient_are_as_without_compiling(case, compile_part, weight):
    wanted = expected(case)
    lam, before, losses = weight * wanted.balanced_lam(), graphs(), []

    def prepare(module: Any) -> None:
        compile_part(module)
        module.on_train_batch_end = lambda outputs, *_: losses.append(outputs["loss"].item())

    module, trainer = fit(case, PSPCallback(lam=lam), prepare=prepare)

    assert graphs() > before
    assert losses == [pytest.approx(wanted.loss.item(), rel=1e-9)]
    assert_gradients(module.gradients[0], wanted.gradients(lam))
    assert_layers(logged_layers(trainer), wanted.mean_squares, PREFIX, rel=1e-5)


# What a network returns besides what the loss reads
UNUSED = [
    "head that the loss does not reach",
    "hidden states beside the prediction",
    "attention maps",
    "returned part, chunk",
    "losses inside, loss and outputs",
]


@pytest.mark.parametrize("name", UNUSED)
def test_layers_of_a_validation_run_of_a_compiled_network_are_those_of_training(name):
    case = BY_NAME[name]
    _, trainer = fit(case, PSPCallback(lam=0.5, entropy=()), validates=True, prepare=network_by_method)
    wanted = {PREFIX + layer for layer in expected(case).mean_squares}
    assert set(logged_layers(trainer, "val")) == set(logged_layers(trainer, "train")) == wanted
