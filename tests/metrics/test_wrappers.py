"""The metrics inside wrappers of torchmetrics."""

import pytest
import torch
from torchmetrics.wrappers import Running

from lightning_psp.metrics import MeanSquarePotential, PSPEntropy
from tests.support.entropy_cases import batch


@pytest.mark.filterwarnings("ignore:PSP-entropy has no samples of")
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("way", ["update", "forward"])
@pytest.mark.parametrize("batches", [1, 2, 5])
def test_running_entropy_is_that_of_the_last_batches(order, way, batches):
    parts = [part for _, *part in zip(range(batches), *(each.split(6) for each in batch((30, 7))), strict=False)]
    running, expected = Running(PSPEntropy(3, order), window=2), PSPEntropy(3, order)
    for part in parts:
        getattr(running, way)(*part)
    for part in parts[-2:]:
        expected.update(*part)
    torch.testing.assert_close(running.compute(), expected.compute(), rtol=0.0, atol=1e-12)


def test_running_mean_square_is_that_of_the_last_batches():
    z = torch.randn(5, 4, 3, dtype=torch.float64)
    running = Running(MeanSquarePotential(), window=2)
    for part in z:
        running.update(part)
    torch.testing.assert_close(running.compute(), z[-2:].square().mean())
