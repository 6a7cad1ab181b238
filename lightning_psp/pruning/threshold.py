"""The largest threshold under which a network without its small weights keeps a bound on its loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FoundThreshold:
    """A threshold that was evaluated and kept the bound.

    Args:
        threshold: T; weights with :math:`|w| < T` go.
        pruned: how many of the weights go.
        loss: what the evaluation gave.
    """

    threshold: float
    pruned: int
    loss: float


def find_threshold(
    evaluate: Callable[[float], float],
    magnitudes: Tensor,
    bound: float,
    *,
    start: float,
    most: int | None = None,
    evaluations: int = 14,
) -> FoundThreshold | None:
    r"""The largest threshold T found by bisection with a loss of at most `bound`.

    Bisected is the number of weights that go, not T itself: weights that were decayed lie close to 0, and halving an
    interval of T there would leave most of them on one side. Halving their number gives n / 2¹³ weights after 14
    evaluations, however the magnitudes are distributed. T is always one of the magnitudes, so that every threshold
    between two of them, which takes the same weights away, stands for one evaluation.

    Losses need not grow with T. What is returned was evaluated and is within the bound; a NaN is above it.

    Args:
        evaluate: is given T and returns the loss without the weights below it.
        magnitudes: ``[n]``, the magnitudes of the weights that are left.
        bound: the largest loss allowed.
        start: the threshold that is tried first.
        most: how many weights may go; by default all but the largest one, which always stays.
        evaluations: how often `evaluate` may be called.

    Returns:
        The threshold, or None where no evaluation kept the bound or there is nothing to prune.

    Example:
        >>> magnitudes = torch.tensor([0.125, 0.25, 0.5, 1.0, 2.0])
        >>> find_threshold(lambda threshold: threshold**2, magnitudes, bound=1.5, start=0.3)
        FoundThreshold(threshold=1.0, pruned=3, loss=1.0)
    """
    ordered = magnitudes.flatten()
    # not all devices sort numbers of half precision
    ordered = ordered.float() if ordered.dtype in (torch.float16, torch.bfloat16) else ordered
    ordered = ordered.sort().values
    allowed = min(len(ordered) - 1, len(ordered) if most is None else most)
    # So many go and keep the bound, and so many are too many.
    kept, broken = 0, allowed + 1
    found = None
    wanted = min(max(1, _count_below(ordered, start)), allowed)
    for _ in range(evaluations):
        if broken - kept <= 1:
            break
        count = _count_between(ordered, wanted, kept, broken)
        if count is None:
            break
        threshold = ordered[count].item()
        loss = evaluate(threshold)
        if loss <= bound:
            kept, found = count, FoundThreshold(threshold, count, loss)
        else:
            broken = count
        wanted = (kept + broken) // 2
    return found


def _count_between(ordered: Tensor, wanted: int, kept: int, broken: int) -> int | None:
    """How many weights a threshold takes away, about `wanted`, for equal ones go or stay together."""
    value = ordered[wanted].item()
    below, up_to = _count_below(ordered, value), _count_below(ordered, value, with_equal=True)
    return next((count for count in (below, up_to) if kept < count < broken), None)


def _count_below(ordered: Tensor, value: float, with_equal: bool = False) -> int:
    side = "right" if with_equal else "left"
    return int(torch.searchsorted(ordered, ordered.new_tensor(value), side=side))
