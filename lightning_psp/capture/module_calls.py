"""Being told of every call of a module's forward, without a hook on any module."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any, Protocol

import torch
from torch import nn

from lightning_psp.torch_private.compiler import comptime, nodes_in, running_modules
from lightning_psp.torch_private.modules import (
    GlobalHooks,
    compiled_among,
    compiled_call_of,
    is_compiled,
    set_compiled_call,
)


class Listener(Protocol):
    """What is told of module calls."""

    def enter_module(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """The forward of a module starts."""

    def leave_module(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """The forward of a module has ended; `output` is None after an exception."""


_is_traced = torch.compiler.is_dynamo_compiling

# The key under which a node of a traced graph tells which calls of modules return it, and as which of their tensors.
RETURNED = "psp_returned"
_GLOBAL_HOOKS = r"Using `torch.compile\(module\)` when there are global hooks"
_listeners: list[tuple[Listener, int]] = []  # each with the number of the thread in which it watches


def has_one_listener() -> bool:
    """Whether one capture alone is entered."""
    return len(_listeners) == 1


@contextmanager
def told_of_module_calls(listener: Listener, modules: Iterable[nn.Module]) -> Iterator[None]:
    """While open, a listener is told of every call of a module in this thread.

    Args:
        listener: whom to tell.
        modules: those among which some may be compiled by their own method `compile`, which takes hooks into the
            compiled code.
    """
    with ExitStack() as stack:
        for module in compiled_among(modules):
            if is_compiled(module):
                _silence()
            if compiled_call_of(module) is not None:
                stack.enter_context(_announced(module, listener))
        entry = (listener, get_ident())
        _listeners.append(entry)
        _hooks.register()
        try:
            yield
        finally:
            _listeners.remove(entry)
            if not _listeners:
                _hooks.remove()


def _before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    if not _is_traced():
        running = get_ident()
        for listener, thread in _listeners:
            if thread == running:
                listener.enter_module(module, inputs)


def _after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    if _is_traced():
        comptime(_mark_output)
    else:
        running = get_ident()
        for listener, thread in _listeners:
            if thread == running:
                listener.leave_module(module, inputs, output)


def _mark_output(context: Any) -> None:
    """Notes in a graph that is being traced which of its nodes give what a module returns."""
    call = running_modules(context)[-1:]
    for place, node in enumerate(nodes_in(context, "output")):
        node.meta.setdefault(RETURNED, {}).update(dict.fromkeys(call, place))


_hooks = GlobalHooks(_before, _after)


def _silence() -> None:
    """Has torch not warn that hooks see the module around a compiled one, too: here it has the name of that one."""
    # A filter that is put there once; one that comes and goes has all other warnings shown again.
    if not any(isinstance(known[1], re.Pattern) and known[1].pattern == _GLOBAL_HOOKS for known in warnings.filters):
        warnings.filterwarnings("ignore", _GLOBAL_HOOKS)


@contextmanager
def _announced(module: nn.Module, listener: Listener) -> Iterator[None]:
    compiled: Any = compiled_call_of(module)
    thread = get_ident()

    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling() or get_ident() != thread:
            return compiled(*args, **kwargs)
        output = None
        listener.enter_module(module, args)
        try:
            output = compiled(*args, **kwargs)
        finally:
            listener.leave_module(module, args, output)
        return output

    set_compiled_call(module, call)
    try:
        yield
    finally:
        set_compiled_call(module, compiled)
