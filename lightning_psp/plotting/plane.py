"""Loss maps: measures over the plane through two solutions."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray
from torch import Tensor

from lightning_psp.analysis import LossPlane
from lightning_psp.plotting.style import (
    check_kind,
    check_names,
    given_axes,
    label_plainly,
    lone,
    new_axes,
    styles,
    tidy,
    with_log_scale,
)

Numbers: TypeAlias = NDArray[np.float64]

_TITLES = {
    "loss": "Loss",
    "error": "Error",
    "z2": "Mean squared potential",
    "entropy": "PSP-entropy",
    "entropy2": "Second-order PSP-entropy",
}
_UNITS = {
    "loss": "loss",
    "error": "share wrongly classified",
    "z2": "⟨z²⟩",
    "entropy": "bits a unit",
    "entropy2": "bits a pair of units",
}
_LINES = 9  # of equal height


def plot_plane(
    plane: LossPlane,
    ax: Axes | None = None,
    *,
    measure: str = "loss",
    layer: str | None = None,
    labels: tuple[str, str] = ("first", "second"),
    log_scale: bool = False,
    colorbar: bool = True,
) -> tuple[Figure | SubFigure, Axes]:
    """Draws a measure over the plane through two solutions as a map, or over the line between them as a curve.

    Tartaglione et al. (2020) draw such maps in Fig. 2 to 4. The solutions are marked; the colours grow evenly lighter,
    so that the map can be read in grey, and lines join points of equal height. Points without a finite value stay
    white.

    Args:
        plane: a result of :func:`~lightning_psp.analysis.loss_plane`.
        ax: axes to draw into; by default a new figure of pyplot.
        measure: what is drawn, one of those that the plane has.
        layer: name of the layer that it is drawn of, where the plane has layers; by default of the network.
        labels: names of the two solutions.
        log_scale: whether heights are logarithmic.
        colorbar: whether a colour bar is drawn beside a map.

    Returns:
        The figure and the axes.

    Raises:
        TypeError: if `plane` is no such result, or `labels` a single string.
        ValueError: if there are not two labels, if the plane does not have the measure or the layer, if no value is
            finite, or if `log_scale` is asked for with values that are not above 0.

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
    check_kind("plane", plane, LossPlane, "a result of `loss_plane`")
    check_names("labels", labels, ("first", "second"))
    if len(labels) != 2:
        raise ValueError(f"Expected argument `labels` to be the names of two solutions but got {labels!r}.")
    values = _values(plane, measure, layer).numpy()
    if not np.isfinite(values).any():
        raise ValueError(f"Expected argument `plane` to have a finite value of {measure!r} but got none.")
    lowest = np.nanmin(values)
    if log_scale and not lowest > 0:
        raise ValueError(f"Expected values above 0 for `log_scale=True` but the lowest is {lowest:g}.")
    axes = new_axes(1, (6.2, 4.6))[0] if ax is None else given_axes(ax, 1, "the plane")[0]
    unit = _UNITS.get(measure, measure)
    if log_scale:
        unit = with_log_scale(unit)
    if len(plane.y) == 1:
        _draw_line(axes, plane.x.numpy(), values[0], labels)
        axes.set_ylabel(unit)
        if log_scale:
            axes.set_yscale("log")
            label_plainly(axes.yaxis)
    else:
        image = _draw_map(axes, plane.x.numpy(), plane.y.numpy(), values, log_scale)
        _mark_solutions(axes, labels)
        axes.set_ylabel("random direction")
        if colorbar:
            bar = axes.figure.colorbar(image, ax=axes, label=unit)
            if log_scale:
                label_plainly(bar.ax.yaxis, (lowest, np.nanmax(values)))
    title = _TITLES.get(measure, measure)
    above_labels = 18.0 if len(plane.y) == 1 else None
    axes.set_title(title if layer is None else f"{title}, {layer}", fontweight="bold", pad=above_labels)
    axes.set_xlabel(f"from {labels[0]} (0) to {labels[1]} (1)")
    return axes.figure, axes


def _values(plane: LossPlane, measure: str, layer: str | None) -> Tensor:
    if measure not in plane.values:
        raise ValueError(f"Expected argument `measure` to be one of {', '.join(plane.values)} but got {measure!r}.")
    if layer is None:
        return plane.values[measure]
    layers = plane.layers.get(measure, {})
    if layer not in layers:
        raise ValueError(
            f"Expected argument `layer` to be one of the layers that the plane has for {measure!r}"
            f" ({', '.join(layers) or 'none: compute it with `by_layer=True`'}) but got {layer!r}."
        )
    return layers[layer]


def _draw_line(axes: Axes, x: Numbers, values: Numbers, labels: tuple[str, str]) -> None:
    marked = lone(values)
    axes.plot(x, values, linewidth=1.8, marker="o" if marked else None, markevery=marked or None, **styles(1)[0])
    for place in (0, 1):
        axes.axvline(place, color="#999999", linewidth=1, linestyle=":")
        where: dict[str, Any] = {
            "xycoords": ("data", "axes fraction"),
            "xytext": (0, 3),
            "textcoords": "offset points",
            "ha": "center",
        }
        axes.annotate(labels[place], (place, 1), fontsize=9, **where)
    tidy(axes)


def _draw_map(axes: Axes, x: Numbers, y: Numbers, values: Numbers, log_scale: bool) -> QuadMesh:
    """Colours that grow evenly lighter, and lines of equal height."""
    values = np.ma.masked_invalid(values)  # a network may have no loss, or an infinite one, far from its solutions
    low, high = values.min(), values.max()
    norm = LogNorm(low, high) if log_scale else None
    image = axes.pcolormesh(x, y, values, shading="nearest", cmap="viridis", norm=norm)
    if high > low:
        heights = (np.geomspace if log_scale else np.linspace)(low, high, _LINES + 2)
        axes.contour(x, y, values, levels=heights[1:-1], colors="white", linewidths=0.6, alpha=0.8)
    return image


def _mark_solutions(axes: Axes, labels: tuple[str, str]) -> None:
    for place, marker in ((0, "o"), (1, "s")):
        axes.plot(place, 0, marker, markersize=8, markerfacecolor="white", markeredgecolor="black")
        box: dict[str, Any] = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
        where: dict[str, Any] = {"xytext": (0, 9), "textcoords": "offset points", "ha": "center"}
        axes.annotate(labels[place], (place, 0), bbox=box, color="black", **where)
