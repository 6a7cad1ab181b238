"""Which part of a capture a function's call goes to: a table that all captures with the same nonlinearities share.

To make it anew whenever a watch begins would take longer than many a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from lightning_psp.capture.functions import Handler, TorchFunction
from lightning_psp.capture.nonlinearities import Nonlinearities


class Dispatch(NamedTuple):
    """A table from functions to methods, without the objects that the methods belong to.

    Args:
        numbers: for each function the number of its method.
        methods: the class and the name of each.
    """

    numbers: Mapping[TorchFunction, int]
    methods: tuple[tuple[type, str], ...]

    def bind(self, *parts: Any) -> list[Handler]:
        """The methods, by number, of these objects, one of each class."""
        by_class = {type(part): part for part in parts}
        return [getattr(by_class[owner], name) for owner, name in self.methods]


def shared_dispatch(
    nonlinearities: Nonlinearities, handlers: Callable[[], Mapping[TorchFunction, Handler]]
) -> Dispatch:
    """The table for these nonlinearities, made once.

    Args:
        nonlinearities: the functions and module classes to react to.
        handlers: gives for each function the bound method that its call goes to, which depends on the former alone.
    """
    known = _made.get(nonlinearities)
    if known is None:
        numbers: dict[TorchFunction, int] = {}
        methods: dict[tuple[type, str], int] = {}
        for function, handler in handlers().items():
            method: Any = handler
            numbers[function] = methods.setdefault((type(method.__self__), method.__name__), len(methods))
        known = _made[nonlinearities] = Dispatch(numbers, tuple(methods))
    return known


_made: WeakKeyDictionary[Nonlinearities, Dispatch] = WeakKeyDictionary()
