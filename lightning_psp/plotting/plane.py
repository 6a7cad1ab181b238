"""Loss maps: measures over the plane through two solutions."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure, SubFigure

from lightning_psp.analysis import LossPlane
from lightning_psp.plotting.style import new_axes, styles, tidy

_TITLES = {"loss": "Loss", "error": "Error", "z2": "Mean squared potential", "entropy": "PSP-entropy"}
_UNITS = {
    "loss": "loss",
    "error": "share wrongly classified",
    "z2": "⟨z²⟩",
    "entropy": "PSP-entropy (bits a unit)",
    "entropy2": "second-order PSP-entropy (bits a pair)",
}
_LINES = 9  # of equal height


def plot_plane(
    plane: LossPlane,
    ax: Axes | None = None,
    *,
    measure: str = "loss",
    labels: tuple[str, str] = ("first", "second"),
    log_scale: bool = False,
    colorbar: bool = True,
) -> tuple[Figure | SubFigure, Axes]:
    """Draws a measure over the plane through two solutions as a map, or over the line between them as a curve.

    Tartaglione et al. (2020), Fig. 2 (loss) and Fig. 4 (⟨z²⟩ and PSP-entropy). The solutions are marked; the colours
    grow evenly lighter, so that the map can be read in grey, and lines join points of equal height.

    Args:
        plane: a result of :func:`~lightning_psp.analysis.loss_plane`.
        ax: axes to draw into; by default a new figure of pyplot.
        measure: what is drawn, one of those that the plane has.
        labels: names of the two solutions.
        log_scale: whether heights are logarithmic.
        colorbar: whether a colour bar is drawn beside a map.

    Returns:
        The figure and the axes.

    Raises:
        ValueError: if the plane does not have the measure, or `log_scale` is asked for with values that are not above 0.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_psp.analysis import loss_plane
        >>> network, other = nn.Linear(3, 2), nn.Linear(3, 2)
        >>> data = [(torch.randn(8, 3), torch.randint(2, (8,)))]
        >>> plane = loss_plane(
        ...     network, network.state_dict(), other.state_dict(), data, measures=("loss",), size=(5, 4)
        ... )
        >>> figure, axes = plot_plane(plane)
        >>> axes.get_title()
        'Loss'
    """
    if measure not in plane.values:
        raise ValueError(f"Expected argument `measure` to be one of {', '.join(plane.values)} but got {measure!r}.")
    values = plane.values[measure].numpy()
    if log_scale and not np.nanmin(values) > 0:
        raise ValueError(f"Expected values above 0 for `log_scale=True` but the lowest is {np.nanmin(values):g}.")
    axes = new_axes(1, (6.2, 4.6))[0] if ax is None else ax
    if len(plane.y) == 1:
        _draw_line(axes, plane, measure, labels, log_scale)
    else:
        _draw_map(axes, plane, measure, labels, log_scale, colorbar)
    axes.set_title(_TITLES.get(measure, measure), fontweight="bold")
    axes.set_xlabel(f"from {labels[0]} (0) to {labels[1]} (1)")
    return axes.figure, axes


def _draw_line(axes: Axes, plane: LossPlane, measure: str, labels: tuple[str, str], log_scale: bool) -> None:
    axes.plot(plane.x.numpy(), plane.values[measure][0].numpy(), linewidth=1.8, **styles(1)[0])
    for place in (0, 1):
        axes.axvline(place, color="#999999", linewidth=1, linestyle=":")
        axes.annotate(labels[place], (place, 1), xycoords=("data", "axes fraction"), xytext=(3, -10), textcoords="offset points")
    axes.set_ylabel(_UNITS.get(measure, measure))
    if log_scale:
        axes.set_yscale("log")
    tidy(axes)


def _draw_map(
    axes: Axes, plane: LossPlane, measure: str, labels: tuple[str, str], log_scale: bool, colorbar: bool
) -> None:
    x, y, values = plane.x.numpy(), plane.y.numpy(), plane.values[measure].numpy()
    norm = LogNorm(np.nanmin(values), np.nanmax(values)) if log_scale else None
    image = axes.pcolormesh(x, y, values, shading="nearest", cmap="viridis", norm=norm)
    low, high = np.nanmin(values), np.nanmax(values)
    if high > low:
        heights = np.geomspace(low, high, _LINES + 2) if log_scale else np.linspace(low, high, _LINES + 2)
        axes.contour(x, y, values, levels=heights[1:-1], colors="white", linewidths=0.6, alpha=0.8)
    for place, marker in ((0, "o"), (1, "s")):
        axes.plot(place, 0, marker, markersize=8, markerfacecolor="white", markeredgecolor="black")
        axes.annotate(
            labels[place],
            (place, 0),
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )
    axes.set_ylabel("random direction")
    if colorbar:
        axes.figure.colorbar(image, ax=axes, label=_UNITS.get(measure, measure))
