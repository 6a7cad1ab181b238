"""Recorded potentials and the gradient of their penalty against the explicit reference, without Lightning."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from lightning_psp import psp_penalty, record_potentials
from tests.support.cases import Case, runs
from tests.support.cases.activations import ACTIVATION_CASES
from tests.support.cases.structures import HARD_CASES, STRUCTURE_CASES
from tests.support.cases.torchvision import TORCHVISION_CASES
from tests.support.gradients import assert_equal_gradients, assert_exact_or_refused
from tests.support.reference import Reduction, reference_step

CASES = ACTIVATION_CASES + STRUCTURE_CASES + TORCHVISION_CASES


pytestmark = pytest.mark.filterwarnings("ignore:Of a network of several layers, only the output was found")


def assert_potentials(found: Mapping[str, Tensor], expected: list[Tensor], case: Case) -> None:
    for z, wanted in zip(found.values(), expected, strict=True):
        # A layer has the shape in which it was computed; the reference takes what the network returned.
        torch.testing.assert_close(z.reshape(wanted.shape), wanted, rtol=1e-12, atol=1e-14)
    if case.names is not None:
        assert tuple(found) == case.names


def recorded(case: Case, reduction: Reduction, lam: float) -> tuple[dict[str, Tensor], Mapping[str, Tensor]]:
    """The gradients by parameter, and the potentials."""
    network, (batch,) = case.build()
    with record_potentials(network) as potentials:
        loss = case.loss(network, batch)
    (loss + lam * psp_penalty(potentials, reduction)).backward()
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in network.named_parameters()
        if p.requires_grad
    }
    return gradients, potentials


@runs([case for case in CASES if not case.partly_live])
def test_potentials_and_gradient(case, reduction):
    network, (batch,) = case.build()
    step = reference_step(network, case.loss, batch, reduction, case.output_layer)
    lam = step.balanced_lam()

    gradients, potentials = recorded(case, reduction, lam)

    assert_potentials(potentials, step.potentials, case)
    assert_equal_gradients(gradients, step.gradients(lam), 1e-10)


@pytest.mark.parametrize("case", [case for case in CASES if case.partly_live], ids=str)
def test_potentials_that_the_loss_reaches_in_part(case):
    network, (batch,) = case.build()
    expected = reference_step(network, case.loss, batch, output_layer=case.output_layer).potentials

    with record_potentials(network) as potentials:
        case.loss(network, batch)

    assert_potentials(potentials, expected, case)


@runs(HARD_CASES)
def test_exact_or_refused(case, reduction):
    assert_exact_or_refused(case, reduction, lambda *settings: recorded(*settings)[0])
