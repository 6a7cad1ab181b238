"""The gradient that arrives at the loss."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class Arriving:
    """The gradient that arrives at the loss of a backward pass."""

    def __init__(self) -> None:
        self.value: float | Tensor = 1.0
        self._waiting: list[Callable[[float | Tensor], None]] = []
        self._has_arrived = False

    def when_known(self, callback: Callable[[float | Tensor], None]) -> None:
        """Has a function called with it before the gradient goes on, and with 0 in a second pass from the loss."""
        self._waiting.append(callback)

    def note(self, gradient: Tensor) -> None:
        """Takes it from the hook on the loss."""
        total = gradient.detach().sum()
        # A tensor on an accelerator is not read, for the step would have to wait for it.
        self.value = total.item() if total.is_cpu else total
        for callback in self._waiting:
            callback(0.0 if self._has_arrived else self.value)
        self._has_arrived = True
