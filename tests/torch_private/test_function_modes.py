"""The stack of modes of torch functions, from which a watch is off while torch's own layers run."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import BaseTorchFunctionMode, _get_current_function_mode_stack

from lightning_psp import record_potentials
from lightning_psp.torch_private import function_modes


class Sees(BaseTorchFunctionMode):
    """Notes the names of functions."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_this_version_has_all_names():
    assert function_modes._can_be_told


def test_a_mode_is_taken_off_where_it_is_the_innermost():
    with BaseTorchFunctionMode() as outer, BaseTorchFunctionMode() as inner:
        assert not function_modes.take_off(outer)
        assert function_modes.take_off(inner)
        assert _get_current_function_mode_stack() == [outer]
        function_modes.put_back(inner)
        assert _get_current_function_mode_stack() == [outer, inner]
    assert not function_modes.take_off(outer)


@pytest.mark.parametrize("can_be_told", [True, False])
def test_modes_of_others_see_what_they_would_see(can_be_told, monkeypatch):
    monkeypatch.setattr(function_modes, "_can_be_told", can_be_told)
    network, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True)), torch.randn(4, 1, 8, 8)
    with Sees() as alone:
        network(x)
    with Sees() as outer, record_potentials(network) as potentials:
        network(x)
    with record_potentials(network) as again, Sees() as inner:
        network(x)
    assert "conv2d" in alone.names
    assert [name for name in inner.names if name in set(alone.names)] == alone.names
    assert {*alone.names} <= {*outer.names}
    torch.testing.assert_close(dict(potentials), dict(again))
    assert list(potentials) == ["1"]


def test_a_mode_is_off_inside_torchs_layers_alone(monkeypatch):
    seen = []
    linear = functional.linear
    monkeypatch.setattr(
        functional, "linear", lambda *args: seen.append(len(_get_current_function_mode_stack())) or linear(*args)
    )

    class Own(nn.Linear):
        pass

    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), Own(4, 4), nn.Tanh(), nn.Linear(4, 2))
    with record_potentials(network) as potentials:
        network(torch.ones(5, 3))
        assert len(_get_current_function_mode_stack()) == 1
    assert seen == [0, 1, 0]
    assert list(potentials) == ["0", "2", "4"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_where_a_layer_ends_in_an_exception(error, monkeypatch):
    def fail(*args):
        raise error

    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    with BaseTorchFunctionMode() as outer:
        with monkeypatch.context() as patch:
            patch.setattr(functional, "linear", fail)
            with pytest.raises(error), record_potentials(network):
                network(torch.ones(5, 3))
        assert _get_current_function_mode_stack() == [outer]
        with record_potentials(network) as potentials:
            network(torch.ones(5, 3))
    assert list(potentials) == ["0"]
    assert not _get_current_function_mode_stack()


def test_an_error_inside_a_layer_that_is_caught_ends_no_watch(monkeypatch):
    class Retries(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(7, 4), nn.Linear(3, 4)

        def forward(self, x):
            try:
                return torch.tanh(self.first(x))
            except RuntimeError:
                return torch.tanh(self.second(x))

    network = Retries()
    with record_potentials(network) as potentials:
        network(torch.ones(5, 3))
    assert list(potentials) == ["second"]


def test_a_mode_is_off_while_a_compiled_function_runs():
    depths = []

    def compiler(graph, inputs):
        return lambda *values: depths.append(len(_get_current_function_mode_stack())) or graph(*values)

    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    torch.compiler.reset()
    compiled = torch.compile(network, backend=compiler)
    with record_potentials(compiled) as potentials:
        compiled(torch.ones(5, 3))
        assert len(_get_current_function_mode_stack()) == 1
    assert depths == [0]
    assert list(potentials) == ["0"]
