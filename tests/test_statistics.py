"""Sums of squares are accurate for every size, layout and type."""

import pytest
import torch

from lightning_psp.statistics import LayerMeans, square_sum

SHAPES = [(1,), (3, 5), (64, 64, 64), (2**18 + 1,), (128, 64, 40, 40), (1, 2**24 + 77)]
LAYOUTS = {
    "contiguous": lambda z: z,
    "transposed": lambda z: z.transpose(0, -1),
    "channels last": lambda z: z.to(memory_format=torch.channels_last) if z.ndim == 4 else z,
    "every other": lambda z: z[..., ::2],
    "expanded": lambda z: z[:1].expand(3, *z.shape[1:]),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_accuracy(shape, layout):
    z = LAYOUTS[layout](torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.5)
    assert square_sum(z).item() == pytest.approx(z.double().square().sum().item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    z = torch.full((100, 1000), 300.0, dtype=dtype)
    assert square_sum(z).dtype == torch.float32
    assert square_sum(z).item() == pytest.approx(300.0**2 * z.numel(), rel=1e-6)


def test_float64_stays():
    z = torch.randn(1000, 100, dtype=torch.float64)
    assert square_sum(z).dtype == torch.float64
    assert square_sum(z).item() == pytest.approx(z.square().sum().item(), rel=1e-13)


def test_means_over_batches_with_different_layers_and_sizes():
    means = LayerMeans()
    means.update({"a": (torch.tensor(2.0), 2), "b": (torch.tensor(3.0), 1)})
    means.update({"a": (torch.tensor(4.0), 1)})
    means.update({})
    assert means.compute() == {"a": 2.0, "b": 3.0}
    resumed = LayerMeans()
    resumed.load(means.sums())
    resumed.update({"b": (torch.tensor(1.0), 3)})
    assert resumed.compute() == {"a": 2.0, "b": 1.0}
