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
    for tables in (modules.tables_of, modules.forward_hooks_of):
        with pytest.raises(NotImplementedError, match=r"no `Module\._\w+`, without which a network cannot be left"):
            tables(Bare(nn.Linear(2, 2)))
