"""The picture of a metric: torchmetrics' own, with units, and with room for its highest point."""

from __future__ import annotations

from typing import Any

_ROOM = 0.08  # above the highest point and below 0, as a share of the height


def with_units(figure_and_axes: Any, label: str) -> Any:
    """Says what a vertical axis from 0 shows, and puts its limits where no marker is cut.

    torchmetrics leaves room for the spread of the values alone, which is none where they are nearly equal, and none for
    the higher values of a second metric in the same axes.

    Args:
        figure_and_axes: what torchmetrics returned; the figure is None where axes were given.
        label: label of the vertical axis.

    Returns:
        The same.
    """
    _, axes = figure_and_axes
    highest = max(axes.dataLim.ymax, 0.0) or 1.0
    axes.set_ylim(-_ROOM * highest, (1 + _ROOM) * highest)
    axes.set_ylabel(label)
    return figure_and_axes
