"""Functions of torch without a public name: known functions and gradients are the same without them."""

import importlib.util

import pytest
import torch
from torch import nn

from lightning_psp import psp_penalty, record_potentials
from lightning_psp.torch_private import functions


def test_this_version_has_all_names():
    assert (torch._C._nn,) == functions.FURTHER_NAMESPACES
    assert functions._unsafe_view is not None


def test_without_the_further_namespace_public_names_are_left(monkeypatch):
    spec = importlib.util.find_spec("lightning_psp.torch_private.functions")
    module = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as without:
        without.delattr(torch._C, "_nn")
        spec.loader.exec_module(module)
    assert module.FURTHER_NAMESPACES == ()
    # All that `torch.nn.functional` has of it under the same name is known by that name.
    known = importlib.util.find_spec("lightning_psp.capture.functions")
    table = importlib.util.module_from_spec(known)
    monkeypatch.setattr(functions, "FURTHER_NAMESPACES", ())
    known.loader.exec_module(table)
    assert nn.functional.gelu in table.all_forms_of("gelu")
    assert nn.functional.avg_pool2d in table.roles()


@pytest.mark.parametrize("is_missing", [False, True])
def test_the_same_values_are_no_view(is_missing, monkeypatch):
    if is_missing:
        monkeypatch.setattr(functions, "_unsafe_view", None)
    tensor = torch.randn(2, 3)
    same = functions.same_memory(tensor)
    assert torch.equal(same, tensor)
    assert not same._is_view()
    assert (same.data_ptr() == tensor.data_ptr()) != is_missing


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("is_missing", [False, True])
def test_gradients_of_compiled_networks_are_the_same(is_missing, monkeypatch):
    if is_missing:
        monkeypatch.setattr(functions, "_unsafe_view", None)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(5, 3, dtype=torch.float64)

    def gradients(called):
        with record_potentials(called) as potentials:
            loss = called(x).square().sum()
        return torch.autograd.grad(loss + 0.1 * psp_penalty(potentials), list(network.parameters()))

    compiled = gradients(torch.compile(network, backend="aot_eager"))
    torch.testing.assert_close(compiled, gradients(network), rtol=1e-10, atol=1e-14)
