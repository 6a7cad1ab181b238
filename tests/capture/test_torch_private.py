"""Names that a version of torch may lack: nothing changes but the cost."""

import importlib.util

import pytest
import torch
from torch import Tensor, nn

from lightning_psp import psp_penalty, record_potentials
from lightning_psp.capture import torch_private
from lightning_psp.capture.torch_private import swap
from lightning_psp.gradient.kernels import can_be_overwritten

NAMES = ["_use_count", "_swap_tensor_impl", "_storage_use_count"]
ALL = [(), *((name,) for name in NAMES), tuple(NAMES)]


@pytest.fixture(params=ALL, ids=lambda names: ", ".join(names) or "nothing")
def missing(request, monkeypatch):
    for name in request.param:
        monkeypatch.setattr(torch_private, name, None)
    return request.param


def loaded_anew():
    spec = importlib.util.find_spec("lightning_psp.capture.torch_private")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_this_version_has_all_names():
    """Else the safe ways are the only ones, and what follows tests nothing."""
    assert all(getattr(loaded_anew(), name) is not None for name in NAMES)


def test_a_version_without_the_names_can_be_imported(monkeypatch):
    monkeypatch.delattr(torch._C, "_swap_tensor_impl")
    monkeypatch.delattr(torch._C, "_storage_Use_Count")
    module = loaded_anew()
    assert module._swap_tensor_impl is None
    assert module.is_memory_held_elsewhere(torch.ones(2))


def test_what_is_not_told_is_taken_for_held(missing):
    x = torch.ones(2, requires_grad=True)
    result = x * 2
    assert torch_private.is_held_elsewhere(result) == ("_use_count" in missing)
    assert torch_private.is_memory_held_elsewhere(result) == ("_storage_use_count" in missing)
    assert can_be_overwritten(result) == ("_storage_use_count" not in missing)
    alias, product = result.detach(), result * result  # saves the result for its backward pass
    assert torch_private.is_memory_held_elsewhere(result)
    assert torch_private.is_held_elsewhere(result)
    product.sum().backward()
    assert x.grad.tolist() == [8.0, 8.0]
    assert alias.tolist() == [2.0, 2.0]


def test_tensors_change_places(missing):
    x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    square, other = x * x, x.new_empty(0)
    swap(square, other)
    assert (square.shape, other.tolist()) == ((0,), [1.0, 4.0])
    other.sum().backward()
    assert x.grad.tolist() == [2.0, 4.0]


class Network(nn.Module):
    """Activations in place of every kind: those that need their input for the backward pass, and one that does not."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(6, 6, dtype=torch.float64) for _ in range(5))
        self.activations = [nn.ReLU(inplace), nn.SiLU(inplace), nn.Hardswish(inplace), nn.ELU(inplace=inplace)]

    def potentials(self, x: Tensor) -> list[Tensor]:
        found = [self.linears[0](x)]
        for activation, linear in zip(self.activations, self.linears[1:], strict=True):
            found.append(linear(activation(found[-1])))
        return found

    def forward(self, x: Tensor) -> Tensor:
        for linear, activation in zip(self.linears[:-1], self.activations, strict=True):
            x = activation(linear(x))
        return self.linears[-1](x)


def test_gradients_are_the_same(missing):
    torch.manual_seed(0)
    plain, overwriting = Network(inplace=False), Network(inplace=True)
    overwriting.load_state_dict(plain.state_dict())
    x, target = torch.randn(8, 6, dtype=torch.float64), torch.arange(8) % 6

    by_hand = plain.potentials(x)
    penalty = sum(z.square().mean() for z in by_hand) / len(by_hand)
    (nn.functional.cross_entropy(by_hand[-1], target) + 0.1 * penalty).backward()
    with record_potentials(overwriting) as potentials:
        loss = nn.functional.cross_entropy(overwriting(x), target)
    (loss + 0.1 * psp_penalty(potentials)).backward()

    assert len(potentials) == 5
    for expected, found in zip(plain.parameters(), overwriting.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", [None, "_use_count", "_storage_use_count"])
def test_a_potential_keeps_its_memory_only_where_it_is_told_to_be_free(name, monkeypatch):
    """So that the gradients above are of two ways: one that exchanges tensors, and one that copies."""
    if name is not None:
        monkeypatch.setattr(torch_private, name, None)
    network = nn.Sequential(nn.Linear(300, 300), nn.SiLU(inplace=True), nn.Linear(300, 2))
    addresses = []
    network[0].register_forward_hook(lambda module, inputs, z: addresses.append(z.data_ptr()))
    with record_potentials(network) as potentials:
        network(torch.ones(2, 300)).sum()
    assert (potentials["0"].data_ptr() in addresses) == (name is None)
