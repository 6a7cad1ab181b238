"""Names that a version of torch may lack: nothing changes but the cost."""

import importlib.util
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from lightning_psp import psp_penalty, record_potentials
from lightning_psp.gradient.kernels import can_be_overwritten
from lightning_psp.torch_private import tensors

NAMES = ["_use_count", "_swap_tensor_impl", "_storage_use_count", "_is_view", "_base"]
ALL = [(), *((name,) for name in NAMES), tuple(NAMES)]


@pytest.fixture(params=ALL, ids=lambda names: ", ".join(names) or "nothing")
def missing(request, monkeypatch):
    for name in request.param:
        monkeypatch.setattr(tensors, name, None)
    return request.param


def loaded_anew():
    spec = importlib.util.find_spec("lightning_psp.torch_private.tensors")
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
    assert tensors.is_held_elsewhere(result) == ("_use_count" in missing)
    assert tensors.is_memory_held_elsewhere(result) == ("_storage_use_count" in missing)
    assert can_be_overwritten(result) == ("_storage_use_count" not in missing)
    alias, product = result.detach(), result * result  # saves the result for its backward pass
    assert tensors.is_memory_held_elsewhere(result)
    assert tensors.is_held_elsewhere(result)
    product.sum().backward()
    assert x.grad.tolist() == [8.0, 8.0]
    assert alias.tolist() == [2.0, 2.0]


def test_tensors_change_places(missing):
    x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    square, other = x * x, x.new_empty(0)
    tensors.swap(square, other)
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


def test_views_are_told(missing):
    base = torch.ones(4, requires_grad=True) * 1
    assert tensors.is_view(base[1:])
    assert tensors.is_view(base) == ("_is_view" in missing)
    assert tensors.base_of(base) is None
    assert (tensors.base_of(base[1:]) is base) == ("_base" not in missing)


class Half(nn.Module):
    """A part of what the first layer gives is overwritten by the activation."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 6, dtype=torch.float64)
        self.last = nn.Linear(4, 2, dtype=torch.float64)

    def forward(self, x):
        hidden = self.first(x)[:, 2:]
        nn.functional.silu(hidden, inplace=True)
        return self.last(hidden)


def test_gradients_where_a_view_is_overwritten(missing):
    torch.manual_seed(0)
    network, x = Half(), torch.randn(5, 3, dtype=torch.float64)
    z = network.first(x)[:, 2:]
    output = network.last(nn.functional.silu(z))
    value = output.square().sum() + 0.1 * (z.square().mean() + output.square().mean()) / 2
    expected = torch.autograd.grad(value, list(network.parameters()))
    with record_potentials(network) as potentials:
        loss = network(x).square().sum()
    found = torch.autograd.grad(loss + 0.1 * psp_penalty(potentials), list(network.parameters()))
    assert {name: tuple(z.shape) for name, z in potentials.items()} == {"first": (5, 4), "last": (5, 2)}
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_overwriting_is_told_or_said_not_to_be():
    tensor = torch.ones(3)
    before = tensors.version_of(tensor)
    tensor.mul_(2)
    assert tensors.version_of(tensor) == before + 1

    class WithoutVersion:
        pass

    with pytest.raises(NotImplementedError, match=r"has no `Tensor\._version`, without which potentials"):
        tensors.version_of(WithoutVersion())


TRANSFORMATIONS = {
    "vmap": lambda network, x: torch.vmap(network)(x),
    "grad": lambda network, x: torch.func.grad(lambda x: network(x).sum())(x),
}


@pytest.mark.parametrize("name", [None, "_is_batched", "_is_tracking_gradient"])
@pytest.mark.parametrize("kind", TRANSFORMATIONS)
def test_transformations_are_refused(kind, name, monkeypatch):
    if name is not None:
        monkeypatch.setattr(tensors, name, None)
    network, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(5, 3)
    words = {"vmap": "cannot be seen as the tensors of one batch", "grad": "its like cannot be penalised"}
    expected = "can neither be seen nor penalised" if name else words[kind]
    with pytest.raises(NotImplementedError, match=expected), record_potentials(network):
        TRANSFORMATIONS[kind](network, x)
    with record_potentials(network) as potentials:  # without a transformation
        network(x)
    assert list(potentials) == ["0", "2"]


@pytest.mark.parametrize("is_missing", [False, True])
def test_tensors_in_containers(is_missing, monkeypatch):
    if is_missing:
        monkeypatch.setattr(tensors, "_tree_map_only", None)
    values = OrderedDict(a=[torch.ones(2), (torch.zeros(1), "b")], c=None)
    result = tensors.map_tensors(lambda tensor: tensor + 1, values)
    assert type(result) is OrderedDict
    assert result["a"][0].tolist() == [2.0, 2.0]
    assert type(result["a"][1]) is tuple
    assert result["a"][1][0].tolist() == [1.0]
    assert (result["a"][1][1], result["c"]) == ("b", None)


@pytest.mark.parametrize("name", [None, "_use_count", "_storage_use_count"])
def test_a_potential_keeps_its_memory_only_where_it_is_told_to_be_free(name, monkeypatch):
    """So that the gradients above are of two ways: one that exchanges tensors, and one that copies."""
    if name is not None:
        monkeypatch.setattr(tensors, name, None)
    network = nn.Sequential(nn.Linear(300, 300), nn.SiLU(inplace=True), nn.Linear(300, 2))
    addresses = []
    network[0].register_forward_hook(lambda module, inputs, z: addresses.append(z.data_ptr()))
    with record_potentials(network) as potentials:
        network(torch.ones(2, 300)).sum()
    assert (potentials["0"].data_ptr() in addresses) == (name is None)
