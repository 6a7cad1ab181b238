"""The yardstick itself: against formulas, known layer counts and the unchanged networks."""

import pytest
import torch
from torch import nn
from torch.nn.modules import activation

from tests.support.cases import Case, cross_entropy
from tests.support.cases.activations import ACTIVATION_CASES, GLU_FORMS, MODULES
from tests.support.cases.structures import HARD_CASES, STRUCTURE_CASES
from tests.support.cases.torchvision import TORCHVISION_CASES
from tests.support.reference import norm, reference_penalty, reference_potentials, reference_step


@pytest.mark.parametrize("reduction", ["mean", "sum", "squared_mean"])
def test_two_layers_equal_the_formula(reduction):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, labels = torch.randn(7, 4).double(), torch.randint(3, (7,))
    (w1, b1, w2, b2) = (p.detach() for p in network.parameters())
    z1 = x @ w1.T + b1
    h = z1.tanh()
    z2 = h @ w2.T + b2

    step = reference_step(network, cross_entropy, (x, labels), reduction)

    if reduction == "mean":
        penalty = ((z1**2).mean() + (z2**2).mean()) / 2
        d1, d2 = z1 / z1.numel(), z2 / z2.numel()
    elif reduction == "sum":
        penalty = ((z1**2).sum() + (z2**2).sum()) / (2 * 7)
        d1, d2 = z1 / 7, z2 / 7
    else:
        penalty = (z1.mean(0) ** 2).mean() + (z2.mean(0) ** 2).mean()
        d1 = (2 * z1.mean(0) / (7 * 5)).expand(7, 5)
        d2 = (2 * z2.mean(0) / (7 * 3)).expand(7, 3)
    d1 = d1 + (d2 @ w2) * (1 - h**2)
    expected = {
        "0.weight": d1.T @ x,
        "0.bias": d1.sum(0),
        "2.weight": d2.T @ h,
        "2.bias": d2.sum(0),
    }
    assert step.live == 2
    torch.testing.assert_close(step.potentials, [z1, z2])
    torch.testing.assert_close(step.penalty, penalty)
    torch.testing.assert_close(step.penalty_gradients, expected)


def test_sum_is_averaged_over_the_positions_of_a_filter_and_over_tokens():
    conv = nn.Conv2d(2, 4, 3)(torch.randn(3, 2, 8, 8))
    linear = nn.Linear(6, 5)(torch.randn(3, 7, 6))
    torch.testing.assert_close(
        reference_penalty([conv, linear], "sum"),
        0.5 * (conv**2).sum() / (3 * 36) + 0.5 * (linear**2).sum() / (3 * 7),
    )


@pytest.mark.parametrize("case", ACTIVATION_CASES + STRUCTURE_CASES + HARD_CASES + TORCHVISION_CASES, ids=str)
def test_rewriting_changes_nothing_and_finds_the_known_layers(case: Case):
    network, (batch,) = case.build()
    step = reference_step(network, case.loss, batch, output_layer=case.output_layer)
    loss = case.loss(network, batch)
    loss.backward()

    torch.testing.assert_close(step.loss, loss.detach(), rtol=1e-12, atol=0)
    rewritten = step.loss_gradients
    error = {
        name: rewritten[name] - p.grad
        for name, p in network.named_parameters()
        if p.requires_grad and p.grad is not None
    }
    assert norm(error) <= 1e-10 * norm(rewritten)
    known = case.layers or (case.names and len(case.names))
    assert known in (None, len(step.potentials))
    if not case.partly_live:
        assert step.live == len(step.potentials)


def test_potentials_of_one_call_are_what_entered_the_nonlinearity():
    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))
    x = torch.randn(2, 4)
    first, last = reference_potentials(network, x)
    assert (first < 0).any()
    torch.testing.assert_close(first, network[0](x))
    torch.testing.assert_close(last, network(x))


def test_table_has_every_activation_of_pytorch():
    no_layers = {"MultiheadAttention", "Softmin", "Softmax", "Softmax2d", "LogSoftmax"}
    assert set(activation.__all__) - no_layers == {
        name for name in (*MODULES, *GLU_FORMS) if name in activation.__all__
    }
