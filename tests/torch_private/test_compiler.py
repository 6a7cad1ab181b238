"""Names of the compiler that a version of torch may lack: nothing changes, or an error says what is lacking."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from lightning_psp import psp_penalty, record_potentials
from lightning_psp.capture import module_calls
from lightning_psp.capture.graph import nodes_below
from lightning_psp.compilation import listening
from lightning_psp.torch_private import compiler
from lightning_psp.torch_private.autograd import function_of

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def networks():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return network, torch.compile(network, backend="aot_eager")


def gradients(network, parameters):
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with record_potentials(network) as potentials:
        loss = network(x).square().sum()
    return torch.autograd.grad(loss + 0.1 * psp_penalty(potentials), parameters)


def test_this_version_has_all_names():
    names = ("_FakeTensorMode", "_LocalSource", "_skip_code", "_VariableTracker", "_functorch_config")
    assert all(getattr(compiler, name) is not None for name in names)
    assert compiler.comptime is not compiler._without_comptime
    assert isinstance(compiler._config.triton.cudagraphs, bool)


@pytest.mark.parametrize("name", [None, "_LocalSource", "_config", "_VariableTracker"])
def test_gradients_are_the_same(name, monkeypatch):
    if name is not None:
        monkeypatch.setattr(compiler, name, None)
    network, compiled = networks()
    parameters = list(network.parameters())
    torch.testing.assert_close(gradients(compiled, parameters), gradients(network, parameters), rtol=1e-10, atol=1e-14)


def test_without_a_way_to_take_part_in_tracing_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(listening, "comptime", compiler._without_comptime)
    monkeypatch.setattr(module_calls, "comptime", compiler._without_comptime)
    network, compiled = networks()
    parameters = list(network.parameters())
    torch.testing.assert_close(gradients(compiled, parameters), gradients(network, parameters), rtol=1e-10, atol=1e-14)


def test_what_modules_return_is_told():
    found = []

    def note(context):
        found.append((compiler.running_modules(context), compiler.nodes_in(context, "output")))

    class Scale(nn.Module):
        def forward(self, x):
            output = (2 * x, 3 * x)
            compiler.comptime(note)
            return output

    torch.compile(nn.Sequential(Scale()), backend="aot_eager")(torch.ones(2))
    (modules, nodes), *_ = found
    assert "Scale" not in modules[0][1]
    assert len(modules) == 2
    assert [node.args for node in nodes] == [(2, nodes[0].args[1]), (3, nodes[0].args[1])]


def test_without_a_way_to_ask_what_modules_return_nothing_is_told():
    class Context:
        def get_local(self, name):
            return object()

    assert compiler.running_modules(Context()) == []
    assert compiler.nodes_in(Context(), "output") == []


@pytest.mark.parametrize("name", ["_FakeTensorMode", "_skip_code"])
def test_what_cannot_be_looked_into_is_an_error(name, monkeypatch):
    monkeypatch.setattr(compiler, name, None)
    network, compiled = networks()
    # The compiler may wrap what is raised while it traces.
    with pytest.raises(RuntimeError, match=rf"no `torch\..*\.{name[1:]}`, without which .*torch.compile"):
        gradients(compiled, list(network.parameters()))
    gradients(network, list(network.parameters()))


def test_a_compiler_that_is_not_given_away_is_an_error():
    with pytest.raises(NotImplementedError, match=r"`OutputGraph\.compiler_fn`, without which .* Train without"):
        compiler.change_compiler(object(), lambda compile_graph: compile_graph)


def test_the_default_for_cuda_graphs_is_read(monkeypatch):
    with torch._inductor.config.patch({"triton.cudagraphs": True}):
        assert compiler.uses_cuda_graphs_by_default()
    monkeypatch.setattr(compiler, "_config", None)
    assert not compiler.uses_cuda_graphs_by_default()


@pytest.mark.parametrize("is_kept", [True, False])
def test_backward_passes_that_may_run_again(is_kept, monkeypatch):
    network = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2))
    x, parameters = torch.ones(5, 3), list(network.parameters())
    compiled = torch.compile(network, backend="aot_eager")
    if not is_kept:
        monkeypatch.setattr(compiler, "_functorch_config", None)
    with compiler.keep_saved_tensors():
        compiled(x).sum().backward()  # compiled for a single backward pass, unless told otherwise
        loss = compiled(x).sum()
        nodes = nodes_below([loss.grad_fn])
        assert any(compiler.takes_saved_tensors(function_of(node)) for node in nodes) == (not is_kept)
        with nullcontext() if is_kept else pytest.raises(RuntimeError, match="donated"):
            first = torch.autograd.grad(loss, parameters, retain_graph=True)
            assert all(map(torch.equal, first, torch.autograd.grad(loss, parameters)))
