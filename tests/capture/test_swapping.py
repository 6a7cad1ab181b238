"""Tensors that change places."""

import weakref

import pytest
import torch
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

from lightning_psp import psp_penalty, record_potentials
from lightning_psp.torch_private.tensors import swap


def test_swapped_tensors_have_each_others_values_and_graph():
    x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    square, other = x * x, x.new_empty(0)
    swap(square, other)
    assert square.shape == (0,)
    assert square.grad_fn is None
    assert other.tolist() == [1.0, 4.0]
    other.sum().backward()
    assert x.grad.tolist() == [2.0, 4.0]


def test_attributes_of_a_swapped_tensor_go_with_its_values():
    tensor, other = torch.ones(2), torch.zeros(3)
    tensor.note = "of the ones"
    swap(tensor, other)
    assert other.tolist() == [1.0, 1.0]
    assert other.note == "of the ones"
    assert not hasattr(tensor, "note")


def test_a_tensor_that_something_else_refers_to_is_not_swapped():
    tensor = torch.ones(2)
    reference = weakref.ref(tensor)
    with pytest.raises(RuntimeError, match="weakref"):
        swap(tensor, torch.zeros(2))
    assert reference() is tensor


def test_a_tensor_that_the_graph_holds_is_not_swapped():
    x = torch.ones(2, requires_grad=True)
    held = x * 2
    result = held * held
    with pytest.raises(RuntimeError, match="use_count"):
        swap(held, torch.zeros(2))
    result.sum().backward()
    assert x.grad.tolist() == [8.0, 8.0]


def as_they_are():
    return saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)


@pytest.mark.parametrize("hooks", [as_they_are, save_on_cpu])
def test_results_that_hooks_on_saved_tensors_hold_keep_their_values(hooks):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    with hooks(), record_potentials(network) as potentials:
        loss = network(x).exp().mean()
    gradients = torch.autograd.grad(loss + psp_penalty(potentials), [*network.parameters()], create_graph=True)
    z = network[0](x)
    logits = network[2](z.relu())
    whole = logits.exp().mean() + (z.square().mean() + logits.square().mean()) / 2
    expected = torch.autograd.grad(whole, [*network.parameters()], create_graph=True)
    assert all(torch.allclose(a, b, rtol=1e-12, atol=0) for a, b in zip(gradients, expected, strict=True))
    second, by_hand = (
        torch.autograd.grad(sum(each.square().sum() for each in first), [*network.parameters()])
        for first in (gradients, expected)
    )
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in zip(second, by_hand, strict=True))
