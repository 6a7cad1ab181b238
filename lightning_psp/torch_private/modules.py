"""Modules: hooks on all of them, and what `torch.compile` makes of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_modules
from torch.utils.hooks import RemovableHandle

from lightning_psp.torch_private.names import find, lacking

_OptimizedModule: Any = find("torch._dynamo.OptimizedModule")


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is what `torch.compile` puts around another one; False where this is not told.

    Example:
        >>> import torch
        >>> is_compiled(nn.Linear(2, 2)), is_compiled(torch.compile(nn.Linear(2, 2)))
        (False, True)
    """
    return _OptimizedModule is not None and isinstance(module, _OptimizedModule)


def compiled_call_of(module: nn.Module) -> Any:
    """What runs in place of a module that its method `compile` has compiled; None for others, or where not told.

    Example:
        >>> compiled_call_of(nn.Linear(2, 2)) is None
        True
    """
    return getattr(module, "_compiled_call_impl", None)


def set_compiled_call(module: nn.Module, call: Any) -> None:
    """Puts another function in the place of :func:`compiled_call_of`, which is there."""
    module._compiled_call_impl = call


def tables_of(module: nn.Module) -> list[dict[str, Any]]:
    """The tables in which a module keeps its own parameters and its own buffers, to be written to.

    Raises:
        NotImplementedError: if this version of torch keeps them elsewhere.

    Example:
        >>> parameters, buffers = tables_of(nn.BatchNorm1d(2))
        >>> list(parameters), list(buffers)
        (['weight', 'bias'], ['running_mean', 'running_var', 'num_batches_tracked'])
    """
    return _named(module, "_parameters", "_buffers")


def forward_hooks_of(module: nn.Module) -> list[dict[int, Any]]:
    """The tables of the hooks that run after a module's forward, to be written to.

    Raises:
        NotImplementedError: if this version of torch keeps them elsewhere.

    Example:
        >>> network = nn.Linear(2, 2)
        >>> handle = network.register_forward_hook(print)
        >>> [handle.id in table for table in forward_hooks_of(network)]
        [True, False, False]
    """
    return _named(module, "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")


def _named(module: nn.Module, *names: str) -> list[Any]:
    for name in names:
        if not hasattr(module, name):
            lacking(f"Module.{name}", "a network cannot be left as it was", "Use another version.")
    return [getattr(module, name) for name in names]


def has_parts(module: nn.Module) -> bool:
    """Whether a module has names for parameters or other modules of its own.

    Example:
        >>> has_parts(nn.Linear(2, 2)), has_parts(nn.ReLU())
        (True, False)
    """
    tables = [getattr(module, name, None) for name in ("_parameters", "_modules")]
    if None in tables:
        return next(module.parameters(recurse=False), None) is not None or next(module.children(), None) is not None
    return any(tables)


class GlobalHooks:
    """Two hooks on every call of a module's forward, that are put there and taken away again.

    Compiled code is made anew whenever a hook has another number or is another function: these keep theirs. Where this
    version of torch keeps hooks elsewhere, they are registered anew each time.

    Args:
        before: called before a forward, as a `forward_pre_hook`.
        after: called after one, also after an exception, as a `forward_hook`.
    """

    def __init__(self, before: Callable[..., None], after: Callable[..., None]) -> None:
        self._before = before
        self._after = after
        self._handles: list[Any] = []
        names = ("_global_forward_pre_hooks", "_global_forward_hooks", "_global_forward_hooks_always_called")
        self._tables: list[Any] = [getattr(torch_modules, name, None) for name in names]
        self._has_tables = None not in self._tables
        self._numbers = [RemovableHandle(table).id for table in self._tables[: 2 * self._has_tables]]

    def register(self) -> None:
        """Puts them there."""
        if self._has_tables:
            (before, after), (pre_hooks, hooks, always) = self._numbers, self._tables
            pre_hooks[before], hooks[after], always[after] = self._before, self._after, True
        elif not self._handles:
            self._handles = [
                torch_modules.register_module_forward_pre_hook(self._before),
                torch_modules.register_module_forward_hook(self._after, always_call=True),
            ]

    def remove(self) -> None:
        """Takes them away."""
        if self._has_tables:
            (before, after), (pre_hooks, hooks, always) = self._numbers, self._tables
            del pre_hooks[before], hooks[after], always[after]
        for handle in self._handles:
            handle.remove()
        self._handles = []
