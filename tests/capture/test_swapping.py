"""Tensors that change places."""

import weakref

import pytest
import torch

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
