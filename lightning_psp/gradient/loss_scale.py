"""The factor by which a loss was multiplied before its backward pass."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LossScale(NamedTuple):
    """A number, times a correction of it.

    Args:
        number: the factor when it was last read.
        correction: what it was multiplied by since then, a scalar on the loss's device; 1 where it was read just now.
    """

    number: float
    correction: float | Tensor = 1.0
