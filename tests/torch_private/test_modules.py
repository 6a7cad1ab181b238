"""Names of modules that a version of torch may lack: hooks, and what compiles a module."""

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_modules

from lightning_psp import record_potentials
from lightning_psp.capture import module_calls
from lightning_psp.torch_private import modules

TABLES = ("_global_forward_pre_hooks", "_global_forward_hooks", "_global_forward_hooks_always_called")


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Tanh()), nn.Linear(4, 2))


class WithoutTables:
    """`torch.nn.modules.module` with its public names alone."""

    register_module_forward_pre_hook = staticmethod(torch_modules.register_module_forward_pre_hook)
    register_module_forward_hook = staticmethod(torch_modules.register_module_forward_hook)


def test_this_version_has_all_names():
    assert all(hasattr(torch_modules, name) for name in TABLES)
    assert modules._OptimizedModule is not None
    assert hasattr(nn.Module, "_compiled_call_impl")


@pytest.mark.parametrize("has_tables", [True, False])
def test_hooks_come_and_go(has_tables, monkeypatch):
    if not has_tables:
        monkeypatch.setattr(modules, "torch_modules", WithoutTables)
    hooks = modules.GlobalHooks(module_calls._before, module_calls._after)
    assert hooks._has_tables == has_tables
    monkeypatch.setattr(module_calls, "_hooks", hooks)
    before = [len(getattr(torch_modules, name)) for name in TABLES]
    for _ in range(2):
        module = network()
        with record_potentials(module) as potentials, record_potentials(module) as again:
            # A second listener needs no second hook.
            assert [len(getattr(torch_modules, name)) for name in TABLES] == [number + 1 for number in before]
            module(torch.ones(5, 3))
        assert list(potentials) == list(again) == ["0", "2"]
        assert [len(getattr(torch_modules, name)) for name in TABLES] == before


@pytest.mark.parametrize("has_tables", [True, False])
def test_a_call_that_ends_in_an_exception_is_told(has_tables, monkeypatch):
    if not has_tables:
        monkeypatch.setattr(modules, "torch_modules", WithoutTables)
    told = []
    hooks = modules.GlobalHooks(lambda *args: told.append("before"), lambda *args: told.append("after"))
    hooks.register()
    try:
        with pytest.raises(RuntimeError):
            nn.Linear(3, 4)(torch.ones(1, 2))
    finally:
        hooks.remove()
    assert told == ["before", "after"]


def test_what_is_compiled_is_told_or_taken_for_plain(monkeypatch):
    assert modules.is_compiled(torch.compile(nn.Linear(2, 2)))
    monkeypatch.setattr(modules, "_OptimizedModule", None)
    assert not modules.is_compiled(torch.compile(nn.Linear(2, 2)))


class Bare:
    """A module of a version that keeps nothing under private names."""

    def __init__(self, module):
        self.parameters, self.children = module.parameters, module.children


@pytest.mark.parametrize(("module", "expected"), [(nn.Linear(2, 2), True), (nn.Sequential(nn.Tanh()), True)])
def test_parts_are_told(module, expected):
    assert modules.has_parts(module) == modules.has_parts(Bare(module)) == expected
    assert not modules.has_parts(nn.Tanh())
    assert not modules.has_parts(Bare(nn.Tanh()))
    assert modules.compiled_call_of(Bare(module)) is None


def test_tables_that_are_not_there_are_an_error():
    for tables in (modules.tables_of, modules.hooks_on, modules.parts_of):
        with pytest.raises(NotImplementedError, match=r"no `Module\._\w+`, without which a network cannot be left"):
            tables(Bare(nn.Linear(2, 2)))


class Frozen(nn.Module):
    """A normalisation whose weights are buffers, and one without any."""

    def __init__(self, weight):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("mean", torch.zeros(4))


def shared():
    """A network with a module and a weight in two places, an empty place, and weights in buffers."""
    inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), Frozen(torch.ones(4)), Frozen(None))
    network = nn.ModuleDict({"first": inner, "again": nn.ModuleList([inner, nn.ReLU()]), "last": nn.Linear(4, 4)})
    network["last"].weight = inner[0].weight
    network["last"].nothing = None
    network["last"].register_module("empty", None)
    return network


@pytest.mark.parametrize("has_tables", [True, False])
@pytest.mark.parametrize("build", [network, shared, lambda: nn.LSTM(2, 3, bidirectional=True), nn.ReLU])
def test_parts_are_those_of_torchs_own_iterators(build, has_tables, monkeypatch):
    if not has_tables:
        monkeypatch.setattr(modules, "_TABLES", ("_a_name_that_no_version_has",))
    root = build()
    parts = modules.Parts(root)
    assert {path: module for module, path in parts.paths.items()} == dict(root.named_modules())
    assert list(parts.paths.values()) == [path for path, _ in root.named_modules()]
    found = parts.parameters()
    assert {own.name: own.table[own.key] for own in found.values()} == dict(root.named_parameters())
    assert {own.name: key for key, own in found.items()} == {name: id(p) for name, p in root.named_parameters()}
    expected = {
        module
        for module in root.modules()
        if [*module.parameters()] or any(name.split(".")[-1] == "weight" for name, _ in module.named_buffers())
    }
    assert parts.weighted == expected
    assert parts.parameterised == {module for module in root.modules() if [*module.parameters()]}


@pytest.mark.parametrize("name", ["_parameters", "_modules", "_forward_pre_hooks"])
def test_what_cannot_be_told_is_followed(name):
    module = nn.Linear(3, 4)
    assert modules.is_plain(module)
    del module.__dict__[name]
    assert not modules.is_plain(module)
