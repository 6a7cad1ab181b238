"""Weights that are put back where the module has got other tensors since."""

import pytest
import torch
from torch import nn

from lightning_psp.pruning.best_weights import copied, put_back


def module():
    found = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    found[0].register_buffer("table", torch.zeros(2), persistent=False)
    return found


def test_values_are_put_back_in_place():
    found = module()
    tensors = [*found.parameters(), *found.buffers()]
    before = copied(found)
    for tensor in tensors:
        tensor.data.add_(1)
    put_back(found, before)
    assert [*found.parameters(), *found.buffers()] == tensors  # tensors compare by identity in lists
    for name, tensor in (*found.named_parameters(), *found.named_buffers()):
        assert torch.equal(tensor, before[name])
        assert tensor is not before[name]


def test_a_buffer_of_another_shape_is_what_it_was():
    found = module()
    before = copied(found)
    found[0].table = torch.ones(5)
    put_back(found, before)
    assert torch.equal(found[0].table, torch.zeros(2))
    assert dict(found.named_buffers()).keys() == {
        name for name in before if "weight" not in name and "bias" not in name
    }
    found[0].table.add_(1)
    assert not before["0.table"].any()


@pytest.mark.parametrize(
    "buffer", [torch.tensor([3.0]).expand(4), torch.tensor([3.0, 0.0]).to_sparse()], ids=["expanded", "sparse"]
)
def test_a_buffer_of_another_layout_is_what_it_was(buffer):
    found = module()
    found.register_buffer("mask", buffer)
    before = copied(found)
    put_back(found, before)
    assert torch.equal(found.mask.to_dense(), buffer.to_dense())
    assert found.mask.layout == buffer.layout


def test_a_buffer_that_has_come_or_gone_stays_so():
    found = module()
    before = copied(found)
    found.register_buffer("late", torch.ones(1))
    found[0].table = None
    put_back(found, before)
    assert found.late == 1
    assert found[0].table is None


@pytest.mark.parametrize("change", ["new", "other shape"])
def test_other_parameters_are_an_error_and_change_nothing(change):
    found = module()
    before = copied(found)
    nn.init.constant_(found[0].weight, 5.0)
    found[1].weight = nn.Parameter(torch.ones(3))
    name = "1.weight"
    if change == "new":
        name, found[1].weight = "1.late", nn.Parameter(torch.ones(2))
        found[1].late = nn.Parameter(torch.ones(1))
    with pytest.raises(RuntimeError, match=f"for parameter '{name}' was not there, or had another shape"):
        put_back(found, before)
    assert (found[0].weight == 5).all()
