"""The compiler of `torch.compile`: what is asked of it while it traces, and of the graphs that it makes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import CodeType
from typing import Any

from torch import fx

from lightning_psp.torch_private.names import find, lacking

_FakeTensorMode: Any = find("torch._subclasses.fake_tensor.FakeTensorMode")
_LocalSource: Any = find("torch._dynamo.source.LocalSource")
_skip_code: Any = find("torch._dynamo.eval_frame.skip_code")
_config: Any = find("torch._inductor.config")
_functorch_config: Any = find("torch._functorch.config")
_VariableTracker: Any = find("torch._dynamo.variables.base.VariableTracker")

_NEED = "potentials inside functions made by `torch.compile` cannot be seen"
_REMEDY = "Train without `torch.compile`, or put `torch.compiler.disable` around the network."


def _without_comptime(function: Callable[[Any], None]) -> None:
    lacking("torch._dynamo.comptime.comptime", _NEED, _REMEDY)


# Called while a function is traced, it runs what it is given at that time, and gives it the context. Where it raises
# an error, the compiler leaves the function as it is written, and potentials are seen as ever.
comptime: Any = find("torch._dynamo.comptime.comptime") or _without_comptime


def change_compiler(context: Any, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Has another compiler take the graph that is being traced.

    Args:
        context: what :data:`comptime` gives.
        change: makes the other compiler of the one that was chosen.

    Raises:
        NotImplementedError: if this version of torch does not give a compiler away.
    """
    translator = getattr(context, "_i_will_not_complain_if_bc_breaks_InstructionTranslator", None)
    graph: Any = None if translator is None else getattr(translator(), "output", None)
    if not hasattr(graph, "compiler_fn"):
        lacking("OutputGraph.compiler_fn", _NEED, _REMEDY)
    graph.compiler_fn = change(graph.compiler_fn)


def running_modules(context: Any) -> list[tuple[str, str]]:
    """The calls of modules that are being traced, the outermost first, as the nodes of the graph name them.

    Args:
        context: what :data:`comptime` gives.
    """
    translator = getattr(context, "_i_will_not_complain_if_bc_breaks_InstructionTranslator", None)
    stack = getattr(translator(), "nn_module_stack", None) if translator is not None else None
    return [(key, name) for key, (name, _) in (stack or {}).items()]


def nodes_in(context: Any, variable: str) -> list[fx.Node]:
    """The nodes of the graph that is being traced that give the tensors in a variable; none where this is not told.

    Args:
        context: what :data:`comptime` gives.
        variable: the name of a local variable of the function that called it.
    """
    tracker = getattr(context.get_local(variable), "_i_will_not_complain_if_bc_breaks_VariableTracker", None)
    if tracker is None or not hasattr(_VariableTracker, "visit"):
        return []
    found: dict[fx.Node, None] = {}

    def note(part: Any) -> None:
        node = getattr(getattr(part, "proxy", None), "node", None)
        if isinstance(node, fx.Node):
            found[node] = None

    _VariableTracker.visit(note, tracker())
    return list(found)


def check_compiler() -> None:
    """Raises an error where graphs cannot be looked into.

    Raises:
        NotImplementedError: if this version of torch lacks what is needed for it.
    """
    needed = {"torch._subclasses.fake_tensor.FakeTensorMode": _FakeTensorMode}
    needed["torch._dynamo.eval_frame.skip_code"] = _skip_code
    for name, found in needed.items():
        if found is None:
            lacking(name, _NEED, _REMEDY)


def without_values() -> AbstractContextManager[Any]:
    """While entered, tensors that are made have a shape and no values, and others can be given to functions, too."""
    mode: AbstractContextManager[Any] = _FakeTensorMode(allow_non_fake_inputs=True)
    return mode


def mark_as_argument(node: fx.Node, name: str) -> None:
    """Tells compilers that an input of a graph is an argument of this name, of which they ask under DDP."""
    if _LocalSource is not None:
        node._dynamo_source = _LocalSource(name)  # type: ignore[attr-defined]


def copy_argument(node: fx.Node, copied: fx.Node) -> None:
    """Tells compilers that an input of a graph is the argument that another one is."""
    copied._dynamo_source = getattr(node, "_dynamo_source", None)  # type: ignore[attr-defined]


def keep_code(code: CodeType) -> None:
    """Has code run as it is written where it is called between the graphs of a compiled function."""
    if _skip_code is not None:
        _skip_code(code)


def uses_cuda_graphs_by_default() -> bool:
    """Whether the default compiler records what a device does and replays it, unless its options say otherwise."""
    return bool(getattr(getattr(_config, "triton", None), "cudagraphs", False))


def keep_saved_tensors() -> AbstractContextManager[Any]:
    """While entered, functions are compiled so that their backward pass may run more than once, and may do so.

    Otherwise it may take the memory of what was saved for it: see :func:`takes_saved_tensors`.
    """
    if not hasattr(_functorch_config, "donated_buffer"):  # of a version that does not do so
        return nullcontext()
    context: AbstractContextManager[Any] = _functorch_config.patch(donated_buffer=False)
    return context


def takes_saved_tensors(function: type) -> bool:
    """Whether the backward pass of a function in the graph takes the memory of what was saved for it."""
    return bool(getattr(getattr(function, "metadata", None), "bw_donated_idxs", None))
