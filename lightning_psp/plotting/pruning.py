"""Error against sparsity."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from lightning_psp.plotting.style import check_kind, given_axes, label_plainly, new_axes, styles, tidy

FEW_MARKS = 5
MOST_MARKS = 11  # labels of the horizontal axis that stand side by side: 0 to 99.9


def plot_pruning(
    arms: Mapping[str, Sequence[tuple[float, float]]],
    ax: Axes | None = None,
    *,
    error: str = "test error (%)",
    log_scale: bool = True,
) -> tuple[Figure | SubFigure, Axes]:
    """Draws error against the share of pruned weights, a line for each way of pruning.

    Tartaglione et al. (2020), Fig. 1: gradual pruning beside one-shot pruning at several compression levels. The
    horizontal axis has equal steps for equal factors of the weights that are left. Several errors at one sparsity are
    drawn as their mean with their standard deviation.

    Args:
        arms: for each label in the legend, the networks' sparsities (shares of zeros from 0 to 1) and errors; the one
            to point out first.
        ax: axes to draw into; by default a new figure of pyplot.
        error: label of the vertical axis.
        log_scale: whether the vertical axis is logarithmic; where an error is 0 it never is.

    Returns:
        The figure and the axes.

    Raises:
        TypeError: if `arms` are no pairs of numbers by label.
        ValueError: if `arms` or one of them is empty, a sparsity is not from 0 to less than 1, or no error is finite.

    Example:
        >>> arms = {"LOBSTER": [(0.0, 0.8), (0.9, 0.8), (0.98, 0.9)], "one-shot": [(0.9, 1.0), (0.9, 1.2)]}
        >>> figure, axes = plot_pruning(arms)
        >>> axes.get_xlabel()
        'pruned weights (%), log scale of those left'
    """
    check_kind(
        "arms", arms, Mapping, "a dict of pairs of sparsity and error by label, such as {'LOBSTER': [(0.9, 1.2)]},"
    )
    for points in arms.values():
        check_kind("arms", points, Iterable, "a dict of sequences of pairs")
        for point in points:
            if isinstance(point, str) or not isinstance(point, Sized) or len(point) != 2:
                raise TypeError(
                    "Expected argument `arms` to be pairs of sparsity and error, such as (0.9, 1.2), but got"
                    f" {point!r}."
                )
            if not all(map(_is_number, point)):
                raise TypeError(
                    "Expected argument `arms` to have numbers as sparsity and error, several errors at one sparsity as"
                    f" several pairs, but got {point!r}."
                )
    if not arms:
        raise ValueError("Expected argument `arms` to have at least one way of pruning but got none.")
    empty = [label for label, points in arms.items() if len(points) == 0]
    if empty:
        raise ValueError(
            f"Expected each of `arms` to have at least one sparsity and error but got none for {empty[0]!r}."
        )
    outside = [share for points in arms.values() for share, _ in points if not 0 <= share < 1]
    if outside:
        raise ValueError(f"Expected the sparsities of `arms` to be from 0 to less than 1 but got {outside[0]}.")
    if not any(np.isfinite(value) for points in arms.values() for _, value in points):
        raise ValueError("Expected argument `arms` to have a finite error but got none.")
    axes = new_axes(1, (7.2, 4.4))[0] if ax is None else given_axes(ax, 1, "the arms")[0]
    axes.set_xscale("log")
    axes.invert_xaxis()  # before there is a single sparsity, of which matplotlib inverts no interval
    # The first one is drawn last, above the others.
    for label, style in zip(list(arms)[::-1], styles(len(arms), markers=True), strict=True):
        by_share: dict[float, list[float]] = defaultdict(list)
        for share, value in arms[label]:
            by_share[share].append(value)
        left = [1 - share for share in sorted(by_share)]
        values = [by_share[share] for share in sorted(by_share)]
        means = [float(np.mean(each)) for each in values]
        deviations = [float(np.std(each, ddof=1)) if len(each) > 1 else 0.0 for each in values]
        bars = deviations if any(deviations) else None
        axes.errorbar(left, means, bars, label=label, capsize=3, linewidth=1.6, markersize=4.5, **style)
    _label_shares(axes)
    axes.set_xlabel("pruned weights (%), log scale of those left")
    if log_scale and all(value > 0 for points in arms.values() for _, value in points):
        axes.set_yscale("log")
        label_plainly(axes.yaxis)
        error = f"{error}, log scale"
    axes.set_ylabel(error)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], frameon=False, handlelength=3)
    tidy(axes)
    return axes.figure, axes


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, str) and isinstance(float(value), float)
    except (TypeError, ValueError):
        return False


def _label_shares(axes: Axes) -> None:
    """Labels the axis of what is left with what is pruned: 0, 50, 80, 90, 95, 98, 99 and so on, or between these."""
    lowest, highest = axes.xaxis.get_data_interval()
    marks = _marks(lowest, highest, (5, 2, 1))
    if lowest == highest:
        axes.xaxis.set_major_locator(FixedLocator([lowest]))
    elif sum(lowest <= mark <= highest for mark in marks) < 2:
        axes.xaxis.set_major_locator(MaxNLocator(6))
    else:
        if len(marks) > MOST_MARKS:  # over many decades 0, 90, 99, …, with more and more digits
            marks = [mark for mark in marks if f"{mark:e}"[0] == "1"]
        elif len(marks) < FEW_MARKS:  # 0, 30, 50, 70, 80, 85, 90, …
            marks = _marks(lowest, highest, (7, 5, 3, 2, 1.5, 1))
        axes.xaxis.set_major_locator(FixedLocator(marks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * (1 - share):.10g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _marks(lowest: float, highest: float, factors: Sequence[float]) -> list[float]:
    """Shares of what is left that are marked, next to an interval of them."""
    marks = [1.0] + [factor * 10.0**-power for power in range(1, 8) for factor in factors]
    return [mark for mark in marks if 0.8 * lowest <= mark <= 1.01 * max(highest, 0.5)]
