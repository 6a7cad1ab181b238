"""What this package asks of TorchMetrics by names that are not public, and what it does with a version without them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torchmetrics import Metric

UPDATES, COMPUTED = "_update_count", "_computed"
SYNCHRONISES, IS_SYNCHRONISED = "_to_sync", "_is_synced"
PLOT = "_plot"


def note_updates(metric: Metric, number: int) -> None:
    """Has a change of a metric's states that went past `update` count as so many updates, and forgets its last value.

    Without the names a metric that was filled so may say that it was computed before its first update.
    """
    if hasattr(metric, UPDATES):
        setattr(metric, UPDATES, getattr(metric, UPDATES) + number)
    if hasattr(metric, COMPUTED):
        setattr(metric, COMPUTED, None)


def synchronises(metric: Metric) -> bool:
    """Whether a metric merges processes when it is computed now, which it does not within ``forward``.

    Without the name: what it was made with.
    """
    return bool(getattr(metric, SYNCHRONISES, getattr(metric, "sync_on_compute", True)))


def is_synchronised(metric: Metric) -> bool:
    """Whether a metric holds the merged states of all processes now; without the name it is taken not to."""
    return bool(getattr(metric, IS_SYNCHRONISED, False))


def picture(metric: Metric, value: Tensor | Sequence[Tensor] | None, ax: Any) -> Any:
    """Draws a value of a metric or several, as its `plot`; figure and axes.

    Raises:
        NotImplementedError: if this version of TorchMetrics has no such function.
    """
    plot = getattr(metric, PLOT, None)
    if plot is None:
        raise NotImplementedError(
            f"This version of TorchMetrics cannot draw {type(metric).__name__}: it has no `Metric.{PLOT}`. Draw what"
            " `compute()` gives with matplotlib."
        )
    return plot(value, ax)
