r"""The reductions of the penalty: what the potentials of a layer count for in R.

A reduction is a row of `RULES`, which the value of the penalty and its gradient follow, in compiled functions too. A
layer's term of R is the sum over its parts of :math:`\lVert x \rVert^2 / d`, where x holds the potentials of a part, or
their means over the batch, and d is a number that depends on nothing but sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, get_args

Reduction = Literal["mean", "sum", "squared_mean"]
REDUCTIONS: tuple[str, ...] = get_args(Reduction)


class Pass(Protocol):
    """How many potentials a pass through a layer has; none has no potentials."""

    @property
    def elements(self) -> int:
        """All of them."""

    @property
    def observations(self) -> int:
        """Those of a unit: samples times positions of a filter."""

    @property
    def batch_size(self) -> int:
        """Samples."""


# The passes of each part of a layer.
Parts: TypeAlias = Sequence[Sequence[Pass]]


@dataclass(frozen=True)
class Rule:
    """How a reduction makes R of potentials.

    Args:
        divisors: gives d of each part of a layer.
        squares_means: whether x are the means over the batch of all passes.
        averages_layers: whether R is the mean of the layers' terms, not their sum.
        tells_units: whether d depends on which dimension holds the units.
    """

    divisors: Callable[[Parts], list[int]]
    squares_means: bool = False
    averages_layers: bool = False
    tells_units: bool = False


def _values(parts: Parts) -> list[int]:
    return [sum(each.elements for passes in parts for each in passes)] * len(parts)


def _twice_the_observations(parts: Parts) -> list[int]:
    return [2 * sum(each.observations for each in passes) for passes in parts]


def _values_of_a_sample(parts: Parts) -> list[int]:
    return [sum(passes[0].elements // passes[0].batch_size for passes in parts)] * len(parts)


RULES: dict[str, Rule] = {
    "mean": Rule(_values, averages_layers=True),
    "sum": Rule(_twice_the_observations, tells_units=True),
    "squared_mean": Rule(_values_of_a_sample, squares_means=True),
}
