"""The factor by which a loss was multiplied before its backward pass."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lightning_psp.functional.totals import Total, magnitude, read_on_processor


class LossScale(NamedTuple):
    """A number, times a correction of it.

    Args:
        number: the factor when it was last read.
        correction: what it was multiplied by since then, a scalar on the loss's device; 1 where it was read just now.
    """

    number: float
    correction: float | Tensor = 1.0

    def size_without(self, loss: Tensor) -> Total:
        """The size of a loss before it was multiplied; several losses are added up."""
        total = loss.detach() if loss.ndim == 0 else loss.detach().sum()
        return magnitude(read_on_processor(total)) / (self.number * self.correction)
