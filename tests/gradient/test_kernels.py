"""Sums of squares are accurate for every size, layout and type."""

import pytest
import torch

from lightning_psp.gradient.kernels import add_potential, can_be_overwritten, square_sum
from lightning_psp.torch_private.tensors import is_memory_held_elsewhere

SHAPES = [(1,), (3, 5), (64, 64, 64), (2**21 + 1,), (128, 64, 40, 40), (1, 2**24 + 77)]
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
    assert square_sum(z).item() == pytest.approx(z.double().square().sum().item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    z = torch.full((100, 1000), 300.0, dtype=dtype)
    assert square_sum(z).dtype == torch.float32
    assert square_sum(z).item() == pytest.approx(300.0**2 * z.numel(), rel=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [2**15, 2**15 + 1, 100_000, 2**18, 2**20 + 3])
def test_equal_values_are_summed_without_a_drift(size, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # a product of vectors depends on them
    try:
        z = torch.full((size,), 300.0)
        assert square_sum(z).item() == pytest.approx(300.0**2 * size, rel=1e-6)
        assert add_potential(z, z, 1.0, None)[1].item() == pytest.approx(300.0**2 * size, rel=1e-6)
    finally:
        torch.set_num_threads(before)


def test_float64_stays():
    z = torch.randn(1000, 100, dtype=torch.float64)
    assert square_sum(z).dtype == torch.float64
    assert square_sum(z).item() == pytest.approx(z.square().sum().item(), rel=1e-13)


@pytest.mark.parametrize("shape", [(3, 5), (64, 64, 64), (2, 2**21 + 1), (16, 64, 40, 40)], ids=str)
@pytest.mark.parametrize("gradient_layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("overwrites", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_adding_a_potential_to_a_gradient(shape, gradient_layout, layout, overwrites, dtype):
    generator = torch.Generator().manual_seed(0)
    gradient = LAYOUTS[gradient_layout](torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype))
    potential = LAYOUTS[layout](torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype))
    before = gradient.clone()
    expected = torch.add(gradient, potential, alpha=0.25)
    total = potential.double().square().sum().item()
    result, square = add_potential(gradient, potential, 0.25, potential if overwrites else None)
    # Half precision is rounded once whichever instructions run.
    torch.testing.assert_close(result, expected, rtol=torch.finfo(dtype).eps, atol=1e-12)
    assert torch.equal(gradient, before)
    assert (result.data_ptr() == potential.data_ptr()) == overwrites
    assert square.item() == pytest.approx(total, rel=1e-5)


def test_memory_that_others_hold_is_told():
    tensor = torch.randn(4, 3) * 1
    assert not is_memory_held_elsewhere(tensor)
    assert not is_memory_held_elsewhere(tensor)
    alias = tensor.detach()
    assert is_memory_held_elsewhere(tensor)
    assert is_memory_held_elsewhere(alias)
    del alias
    assert not is_memory_held_elsewhere(tensor)
    weight = torch.randn(4, 3, requires_grad=True)
    potential = weight * 2
    kept = potential.detach()
    result = potential.exp().sum() + (potential * weight).sum()  # the graph saves the potential
    del potential
    assert is_memory_held_elsewhere(kept)
    result.backward()
    del result
    assert not is_memory_held_elsewhere(kept)


@pytest.mark.parametrize("shape_of", [lambda t: t.unfold(1, 4, 2), lambda t: t[:, None].expand(-1, 3, -1)])
def test_values_that_share_a_place_are_not_overwritten(shape_of):
    with torch.no_grad():
        view = shape_of(torch.randn(2, 8)).detach()
    assert not is_memory_held_elsewhere(view)
    assert not can_be_overwritten(view)
