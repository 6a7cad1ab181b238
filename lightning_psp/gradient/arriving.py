"""The gradient that arrives at the loss."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lightning_psp.functional.totals import read_on_processor


class Arriving:
    """The gradient that arrives at the loss of a backward pass, corrected.

    Args:
        correction: what it is multiplied by.
    """

    def __init__(self, correction: float | Tensor = 1.0) -> None:
        self.value: float | Tensor = correction
        self._correction = correction
        self._waiting: list[Callable[[float | Tensor], None]] = []
        self._has_arrived = False

    def when_known(self, callback: Callable[[float | Tensor], None]) -> None:
        """Has a function called with it before the gradient goes on, and with 0 in a second pass from the loss."""
        self._waiting.append(callback)

    def note(self, gradient: Tensor) -> None:
        """Takes it from the hook on the loss."""
        total = gradient.detach() if gradient.ndim == 0 else gradient.detach().sum()
        if isinstance(self._correction, Tensor):
            total = total * self._correction.to(total.device)
        # A tensor on an accelerator is not read, for the step would have to wait for it.
        self.value = read_on_processor(total)
        for callback in self._waiting:
            callback(0.0 if self._has_arrived else self.value)
        self._has_arrived = True
