"""Eigenvalues of Hessians as other libraries find them: curvlinops 3.0.1 and hessian-eigenthings 1.0.0a5."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_psp.analysis import hessian_eigenvalues, hessian_trace

pytestmark = [
    pytest.mark.libraries,
    pytest.mark.filterwarnings("ignore:.*is deprecated"),  # what these libraries use
]
K = 4


def network_and_data(*sizes):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GELU(), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)
    ).double()
    network(torch.randn(20, 1, 8, 8).double())
    return network, [(torch.randn(size, 1, 8, 8).double(), torch.randint(5, (size,))) for size in sizes]


def test_curvlinops():
    curvlinops = pytest.importorskip("curvlinops")
    from scipy.sparse.linalg import eigsh

    network, data = network_and_data(7, 7, 2)
    spectrum, trace = hessian_eigenvalues(network, data, k=K, tolerance=1e-9), hessian_trace(network, data, samples=500)
    weights = list(network.eval().parameters())
    operator = curvlinops.HessianLinearOperator(network, nn.CrossEntropyLoss(), weights, data)
    expected = eigsh(operator.to_scipy(dtype=np.float64), K, which="LA", tol=1e-10)[0]
    torch.testing.assert_close(spectrum.values, torch.from_numpy(expected).flip(0), rtol=1e-6, atol=0)
    whole = operator @ torch.eye(operator.shape[0]).double()
    assert abs(trace.value - whole.trace().item()) < 3 * trace.standard_error


def test_hessian_eigenthings():
    library = pytest.importorskip("hessian_eigenthings")
    network, data = network_and_data(8, 8)  # it weighs batches alike, whatever their size
    spectrum = hessian_eigenvalues(network, data, k=K, tolerance=1e-9)

    def loss(network, batch):
        return functional.cross_entropy(network(batch[0]), batch[1])

    operator = library.HessianOperator(network.eval(), data, loss)
    found = library.lanczos(operator, k=K, max_iter=60, which="LA", seed=0, reorthogonalize=True)
    torch.testing.assert_close(spectrum.values, found.eigenvalues.sort(descending=True).values, rtol=1e-6, atol=0)
