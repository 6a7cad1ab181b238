"""Modules whose `forward` is called by its name, `self.cell.forward(x)`, of which no hook is told.

Each run of such a `forward` has a frame of Python's, which is looked for where a place in the code gets its name.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Generic, TypeVar

from torch import nn

from lightning_psp.torch_private.modules import CODE_OF_A_CALL, FILE_OF_CALLS

Run = TypeVar("Run")


class DirectCalls(Generic[Run]):
    """Tells the runs of `forward` apart that no hook is told of."""

    def __init__(self) -> None:
        self._runs: list[tuple[FrameType, Run]] = []

    def clear(self) -> None:
        """Lets go of all runs."""
        self._runs.clear()

    def running(self, calls: int, start: Callable[[nn.Module], Run | None]) -> Iterator[Run]:
        """The runs from the innermost one outwards, up to a call that a hook was told of.

        Args:
            calls: number of calls inside of that one that hooks were told of, too.
            start: makes what is kept of a run of a module's `forward`; None for a module that does not count.
        """
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            if code is CODE_OF_A_CALL:
                if not calls:
                    return
                calls -= 1
            elif code.co_name == "forward":
                run = self._run_in(frame, start)
                if run is not None:
                    yield run
            frame = frame.f_back

    def _run_in(self, frame: FrameType, start: Callable[[nn.Module], Run | None]) -> Run | None:
        if frame.f_back is None or frame.f_back.f_code.co_filename == FILE_OF_CALLS:
            return None  # a call that hooks are told of
        for known, run in self._runs:
            if known is frame:
                return run
        module = _first_argument(frame)
        # Not a `forward` of a class that the module's own one is derived from, which runs within that.
        if not isinstance(module, nn.Module) or _code_of(module) is not frame.f_code:
            return None
        found = start(module)
        if found is not None:
            # A frame that is held is no other run's. One that has ended is let go of, for it holds variables.
            callers = [*_from(frame)]
            self._runs = [(frame, found), *(run for run in self._runs if run[0] in callers)]
        return found


def _from(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame, and those of its callers."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _first_argument(frame: FrameType) -> object:
    code = frame.f_code
    if not code.co_argcount:
        return None
    variables = frame.f_locals
    found: object = variables.get(code.co_varnames[0])
    if isinstance(variables, dict):
        variables.clear()  # before Python 3.13 a copy, which would hold the variables until the function returns
    return found


def _code_of(module: nn.Module) -> CodeType | None:
    forward = inspect.unwrap(vars(module).get("forward", type(module).forward))
    return getattr(getattr(forward, "__func__", forward), "__code__", None)
