"""LOBSTER's decay against the definition, number by number, and against trainings written out."""

import pytest
import torch
from torch import nn

from lightning_psp.pruning.decay import sensitivity_decay

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex128]
# Of a piece of a large tensor, and beyond: see the module.
SHAPES = [(), (0,), (3,), (2, 3, 5, 5), (1 << 15,), ((1 << 15) + 1,), (600, 500), (3, 1 << 17)]


def decayed(weight, gradient, lam):
    """The definition, in double precision."""
    wide = torch.complex128 if weight.is_complex() else torch.float64
    found = torch.empty(weight.shape, dtype=wide)
    for place, (w, g) in enumerate(zip(weight.flatten().tolist(), gradient.flatten().tolist(), strict=True)):
        found.view(-1)[place] = w - lam * w * max(0.0, 1.0 - abs(g))
    return found


def numbers(shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_decays(weights, gradients, lam):
    expected = [decayed(w, g, lam) for w, g in zip(weights, gradients, strict=True)]
    largest_errors = [2 * torch.finfo(weight.dtype).eps * weight.abs() for weight in weights]
    before = [gradient.clone() for gradient in gradients]
    sensitivity_decay(weights, gradients, lam)
    for weight, value, largest in zip(weights, expected, largest_errors, strict=True):
        assert ((weight.to(value.dtype) - value).abs() <= largest).all()
    assert all(map(torch.equal, gradients, before))


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape):
    assert_decays([numbers(shape)], [numbers(shape, seed=1)], 0.1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_types(dtype):
    assert_decays([numbers((7, 9), dtype)], [numbers((7, 9), dtype, 1)], 0.3)


@pytest.mark.parametrize("lam", [0.0, 1e-4, 0.5, 1.0])
def test_strengths(lam):
    assert_decays([numbers((50, 40))], [numbers((50, 40), seed=1)], lam)


def test_many_tensors_of_several_types_at_once():
    weights = [numbers((20 + i, 1000 * (i % 3) + 7), DTYPES[i % 3], i) for i in range(20)]
    gradients = [numbers(weight.shape, weight.dtype, 99 - i) for i, weight in enumerate(weights)]
    assert_decays(weights, gradients, 0.2)


@pytest.mark.parametrize("channels_last", [(True, True), (True, False), (False, True)])
def test_orders_in_memory(channels_last):
    pair = [numbers((64, 64, 3, 3)), numbers((64, 64, 3, 3), seed=1)]
    pair = [
        t.to(memory_format=torch.channels_last) if is_last else t
        for t, is_last in zip(pair, channels_last, strict=True)
    ]
    assert_decays(pair[:1], pair[1:], 0.1)


def test_views():
    whole = numbers((300, 301))
    kept = whole.clone()
    assert_decays([whole.T[1:, ::2]], [numbers((300, 150), seed=1)], 0.1)
    assert torch.equal(whole[1::2], kept[1::2])
    assert torch.equal(whole[:, 0], kept[:, 0])


def test_sparse_gradients():
    embedding = nn.Embedding(5, 3, sparse=True, dtype=torch.float64)
    embedding(torch.tensor([1, 1, 4])).square().sum().backward()
    expected = decayed(embedding.weight.detach(), embedding.weight.grad.to_dense(), 0.1)
    sensitivity_decay([embedding.weight], [embedding.weight.grad], 0.1)
    torch.testing.assert_close(embedding.weight.detach(), expected, rtol=1e-15, atol=0)


def test_parameters_need_no_graph():
    weight = nn.Parameter(numbers((3, 3)))
    assert_decays([weight.detach()], [numbers((3, 3), seed=1)], 0.1)
    sensitivity_decay([weight], [numbers((3, 3))], 0.1)
    assert weight.is_leaf
    assert weight.requires_grad


def test_nothing_to_do():
    sensitivity_decay([], [], 0.1)


def test_a_gradient_for_each_weight():
    with pytest.raises(ValueError, match="zip"):
        sensitivity_decay([numbers((2,)), numbers((2,))], [numbers((2,))], 0.1)
