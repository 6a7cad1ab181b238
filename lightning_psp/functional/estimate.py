"""A value of PSP-entropy together with how it was obtained."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class EntropyEstimate:
    """PSP-entropy of a layer, and whether it is exact.

    Attributes:
        value: mean of the joint entropy over sets of units, in bits, summed over classes.
        standard_error: standard error of `value`, 0 where it is exact.
        number_of_sets: how many sets of units were evaluated.
        is_exact: whether these are all sets of the layer, or a sample of them.
    """

    value: float
    standard_error: float
    number_of_sets: int
    is_exact: bool


# Of no samples at all.
NO_ESTIMATE = EntropyEstimate(math.nan, math.nan, 0, is_exact=False)
