"""Estimates of the trace, against the trace of the whole matrix."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_psp.analysis import TraceEstimate, hessian_trace
from tests.support.analysis.dense_hessian import dense_hessian
from tests.support.cases.activations import Dense


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def batches(*sizes):
    return [(torch.randn(size, 6).double(), torch.randint(3, (size,))) for size in sizes]


@pytest.mark.parametrize("lam", [0.0, 0.5])
@pytest.mark.parametrize("is_masked", [False, True])
def test_within_its_standard_error(lam, is_masked):
    network, data = Dense(nn.Tanh()).double(), batches(9, 2)
    masks = {"fc1.weight": torch.rand(8, 6) < 0.5} if is_masked else None

    def loss(network, batch):
        hidden = network.fc1(batch[0])
        logits = network.fc2(torch.tanh(hidden))
        return nn.functional.cross_entropy(logits, batch[1]) + lam * ((hidden**2).mean() + (logits**2).mean()) / 2

    diagonal = dense_hessian(network, data, loss).diag()
    if is_masked:
        diagonal[:48] *= masks["fc1.weight"].flatten()
    few, many = (hessian_trace(network, data, masks=masks, lam=lam, samples=samples) for samples in (50, 1000))
    for estimate in (few, many):
        assert abs(estimate.value - diagonal.sum().item()) < 3 * estimate.standard_error
    assert many.standard_error < 0.05 * abs(many.value)
    # which falls with the root of the number of samples
    assert few.standard_error / many.standard_error == pytest.approx((1000 / 50) ** 0.5, rel=0.3)


def test_standard_error_is_that_of_repeated_estimates():
    network, data = Dense(nn.Tanh()).double(), batches(9)
    estimates = [hessian_trace(network, data, samples=20, seed=seed) for seed in range(60)]
    spread = torch.tensor([estimate.value for estimate in estimates]).std().item()
    mean = torch.tensor([estimate.standard_error for estimate in estimates]).mean().item()
    assert mean == pytest.approx(spread, rel=0.3)


def test_exact_for_a_diagonal_hessian(tmp_path):
    network = nn.Linear(50, 1, bias=False).double()
    curvature = torch.randn(50).double()
    estimate = hessian_trace(
        network, [torch.ones(3, 1)], loss=lambda network, batch: (curvature * network.weight**2).sum() / 2, samples=2
    )
    assert estimate.value == pytest.approx(curvature.sum().item(), rel=1e-12)
    assert estimate.standard_error == pytest.approx(0, abs=1e-12)
    estimate.save(tmp_path / "trace.pt")
    assert TraceEstimate.load(tmp_path / "trace.pt") == estimate


def test_single_precision():
    network, data = Dense(nn.ReLU()), batches(9)
    exact = dense_hessian(network.double(), data).trace().item()
    estimate = hessian_trace(network.float(), [(x.float(), y) for x, y in data], samples=200)
    assert abs(estimate.value - exact) < 3 * estimate.standard_error
