"""The stack of modes that are told of torch functions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch.overrides import TorchFunctionMode

from lightning_psp.torch_private.names import find

_depth: Any = find("torch._C._len_torch_function_stack")
_mode_at: Any = find("torch._C._get_function_stack_at")
_pop: Any = find("torch._C._pop_torch_function_stack")
_push: Any = find("torch._C._push_on_torch_function_stack")
_can_be_told = None not in (_depth, _mode_at, _pop, _push)


def take_off(mode: TorchFunctionMode) -> bool:
    """Takes a mode off this thread's stack, if it is the innermost one there; :func:`put_back` puts it there again.

    Functions are called faster then than past a mode that only hands them on. Where this version of torch does not tell
    which mode is the innermost, it stays.

    Returns:
        Whether it was taken off.

    Example:
        >>> import torch
        >>> from torch.overrides import BaseTorchFunctionMode
        >>> with BaseTorchFunctionMode() as mode:
        ...     with torch.device("cpu"):
        ...         print(take_off(mode))
        ...     print(take_off(mode))
        ...     put_back(mode)
        False
        True
    """
    if not _can_be_told or not (depth := _depth()) or _mode_at(depth - 1) is not mode:
        return False
    _pop()
    return True


def put_back(mode: TorchFunctionMode) -> None:
    """Puts a mode on this thread's stack that :func:`take_off` has taken off it."""
    _push(mode)


@contextmanager
def taken_off(mode: TorchFunctionMode) -> Iterator[None]:
    """While entered, a mode is off the stack that :func:`take_off` can take off it."""
    is_off = take_off(mode)
    try:
        yield
    finally:
        if is_off:
            put_back(mode)


@contextmanager
def innermost_taken_off(kind: type[TorchFunctionMode]) -> Iterator[None]:
    """While entered, the innermost mode is off this thread's stack, if it is of a kind.

    Where this version of torch does not tell which it is, it stays.

    Example:
        >>> import torch
        >>> from torch.overrides import BaseTorchFunctionMode
        >>> with BaseTorchFunctionMode() as mode:
        ...     with innermost_taken_off(BaseTorchFunctionMode):
        ...         print(take_off(mode))
        ...     print(take_off(mode))
        ...     put_back(mode)
        False
        True
    """
    depth = _depth() if _can_be_told else 0
    mode = _mode_at(depth - 1) if depth else None
    with taken_off(mode) if isinstance(mode, kind) else nullcontext():
        yield
