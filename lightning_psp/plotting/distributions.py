"""Distributions of weights or potentials, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray

from lightning_psp.plotting.style import (
    check_kind,
    explain,
    given_axes,
    in_lines,
    label_plainly,
    legend_above,
    new_axes,
    styles,
    tidy,
)

_SHARE_SHOWN = 0.9995
_LEAST_SHOWN = 1e-5  # density, as a share of the largest one
_LEAST_BINS = 40
_FEW = 100.0  # times the lowest density
_HISTOGRAMS = "histograms, dicts with `counts` (such as `torch.histc(z, 200, -limit, limit)`), `limit` and `beyond`,"


def plot_distributions(
    techniques: Mapping[str, Mapping[str, Mapping[str, Any]]],
    ax: Axes | Sequence[Axes] | None = None,
    *,
    values: str = "weight",
) -> tuple[Figure | SubFigure, tuple[Axes, ...]]:
    """Draws densities of weights or potentials, a panel a layer and a line a technique: the first paper's Fig. 3.

    Each panel shows the interval around 0 that holds 99.95 % of the values of every technique or, where more lie beyond
    the bins, all bins, and says how many that are.

    Args:
        techniques: for each label in the legend and each layer its histogram, a mapping with ``counts``, the numbers of
            values in equal bins from ``-limit`` to ``limit``, and ``beyond``, how many lie outside; the one to point
            out last. All have the same layers and, for a layer, the same bins.
        ax: axes to draw into, one for each layer; by default a new figure of pyplot.
        values: what is counted, for the horizontal axes.

    Returns:
        The figure, and the axes in the order of the layers.

    Raises:
        TypeError: if `techniques` are no histograms by label and layer.
        ValueError: if there is nothing to draw, a histogram lacks something, bins have no width, techniques have
            different layers, or there are not as many axes as layers.

    Example:
        >>> import torch
        >>> def histogram(z, limit=4.0):
        ...     counts = torch.histc(z, 200, -limit, limit).long()
        ...     return {"limit": limit, "counts": counts.tolist(), "beyond": z.numel() - int(counts.sum())}
        >>> z = torch.randn(10_000)
        >>> figure, (axes,) = plot_distributions({"none": {"fc1": histogram(z)}, "PSP": {"fc1": histogram(z / 2)}})
        >>> axes.get_title()
        'fc1'
    """
    check_kind("techniques", techniques, Mapping, "a dict of histograms by label and layer")
    for each in techniques.values():
        check_kind("techniques", each, Mapping, "a dict of histograms by label and layer")
        for histogram in each.values():
            check_kind("techniques", histogram, Mapping, _HISTOGRAMS)
    _check_complete(techniques)
    layers = list(next(iter(techniques.values()), {}))
    if not layers:
        raise ValueError("Expected argument `techniques` to have histograms of at least one layer but got none.")
    for label, histograms in techniques.items():
        if histograms.keys() != set(layers):
            raise ValueError(
                f"Expected all of argument `techniques` to have the layers {', '.join(layers)} but got"
                f" {', '.join(histograms)} for {label!r}."
            )
        empty = [layer for layer, each in histograms.items() if not sum(each["counts"]) + each["beyond"]]
        if empty:
            raise ValueError(
                f"Expected argument `techniques` to have values of {empty[0]!r} for {label!r} but got none."
            )
        for layer, histogram in histograms.items():
            if not 0 < histogram["limit"] < float("inf"):
                raise ValueError(
                    f"Expected the `limit` of {layer!r} to be a finite number above 0 for {label!r} but got"
                    f" {histogram['limit']}."
                )
    panels = new_axes(len(layers), (3.1, 3.6)) if ax is None else given_axes(ax, len(layers), ", ".join(layers))
    for axes, layer in zip(panels, layers, strict=True):
        of_layer = {label: histograms[layer] for label, histograms in techniques.items()}
        _draw_layer(axes, of_layer)
        axes.set_title(in_lines(layer, axes), fontweight="bold")
        axes.set_xlabel("\n".join([values, *_left_out(of_layer)]))
        if axes is panels[0] or (ax is None and (place := axes.get_subplotspec()) and place.is_first_col()):
            axes.set_ylabel("density (log scale)")
    figure = panels[0].figure
    if isinstance(figure, Figure) and ax is None:
        caption = (
            f"Each panel shows the interval around 0 that holds {100 * _SHARE_SHOWN:g} % of the values of every"
            " technique or, where more lie beyond, all bins."
        )
        explain(figure, caption)
        legend_above(figure, panels[0])
    else:
        panels[0].legend(frameon=False, handlelength=3)
    return figure, tuple(panels)


def _check_complete(techniques: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    for label, histograms in techniques.items():
        for layer, histogram in histograms.items():
            for part in ("counts", "limit", "beyond"):
                if part not in histogram:
                    raise ValueError(
                        f"Expected argument `techniques` to be {_HISTOGRAMS} but `{part}` is missing of {layer!r} for"
                        f" {label!r}."
                    )


def _draw_layer(axes: Axes, histograms: Mapping[str, Mapping[str, Any]]) -> None:
    shown = max(_half_width(histogram) for histogram in histograms.values())
    least = 0.0
    for (label, histogram), style in zip(histograms.items(), styles(len(histograms)), strict=True):
        density, edges = _density(histogram, shown)
        least = max(least, _LEAST_SHOWN * density.max())
        axes.stairs(density, edges, label=label, linewidth=1.4, **style)
    axes.set_xlim(-shown, shown)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_yscale("log")
    axes.set_ylim(bottom=max(least, axes.get_ylim()[0]))
    lowest, highest = axes.get_ylim()
    if highest < _FEW * lowest:  # there may be no power of ten between them
        label_plainly(axes.yaxis, (lowest, highest))
    axes.yaxis.set_minor_formatter(NullFormatter())
    tidy(axes)


def _left_out(histograms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Says for each technique how many values lie beyond its bins, where these are more than are left out elsewhere."""
    shares = {
        label: histogram["beyond"] / (sum(histogram["counts"]) + histogram["beyond"])
        for label, histogram in histograms.items()
    }
    if max(shares.values()) <= 1 - _SHARE_SHOWN:
        return []
    told = [f"{label.partition(' (')[0]} {100 * share:.1f} %" for label, share in shares.items()]
    return ["beyond: " + ", ".join(told)]


def _half_width(histogram: Mapping[str, Any]) -> float:
    """Half of the narrowest interval around 0, of whole bins, that holds nearly all values."""
    counts = np.asarray(histogram["counts"])
    # The two bins at the same distance from 0 together, the nearest first; of an odd number the one around 0 is alone.
    by_distance = (counts + counts[::-1])[len(counts) // 2 :]
    alone = len(counts) % 2
    if alone:
        by_distance[0] = counts[len(counts) // 2]
    wanted = _SHARE_SHOWN * (counts.sum() + histogram["beyond"])
    pairs = min(np.searchsorted(np.cumsum(by_distance), wanted) + 1, len(by_distance))
    return float(histogram["limit"] * (2 * pairs - alone) / len(counts))


def _density(histogram: Mapping[str, Any], shown: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Density and edges of bins as wide as they may be with at least 40 of them from ``-shown`` to ``shown``."""
    counts, limit = np.asarray(histogram["counts"], dtype=float), histogram["limit"]
    wanted = _LEAST_BINS * limit / shown
    numbers = [each for each in range(1, len(counts) + 1) if len(counts) % each == 0]
    number = next((each for each in numbers if each >= wanted), len(counts))
    share = counts / (counts.sum() + histogram["beyond"])
    edges = np.linspace(-limit, limit, number + 1)
    return share.reshape(number, -1).sum(axis=1) / np.diff(edges), edges
