"""Networks and data on the processor give the same results where tensors are made on another device by default."""

import pytest
import torch

from lightning_psp import layer_summary
from lightning_psp.analysis import (
    constant_units,
    hessian_eigenvalues,
    hessian_trace,
    loss_plane,
    psp_gradient_parts,
)
from tests.support.analysis.planes import MLP, batches, solutions

MASKS = {"fc1.weight": torch.arange(24).view(6, 4) % 3 > 0}
ANALYSES = {
    "plane": lambda network, first, second, data: loss_plane(
        network, first, second, data, size=(2, 2), measures=("loss", "error", "z2"), masks=MASKS
    ),
    "eigenvalues": lambda network, first, second, data: hessian_eigenvalues(network, data, k=2, masks=MASKS),
    "trace": lambda network, first, second, data: hessian_trace(network, data, samples=3),
    "gradient parts": lambda network, first, second, data: psp_gradient_parts(network, data[0][0]),
    "constant units": lambda network, first, second, data: constant_units(network, data),
    "summary": lambda network, first, second, data: layer_summary(network, data[0][0]),
}


@pytest.mark.parametrize("name", ANALYSES)
def test_results_are_those_of_the_processor(name):
    torch.manual_seed(0)
    scene = MLP().double(), *solutions(MLP().double()), batches()
    expected = ANALYSES[name](*scene)
    with torch.device("meta"):
        found = ANALYSES[name](*scene)
    assert str(found) == str(expected)
    assert all(each.device.type == "cpu" for each in vars(found).values() if isinstance(each, torch.Tensor))
