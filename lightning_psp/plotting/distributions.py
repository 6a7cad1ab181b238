"""Distributions of weights or potentials, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray
from torch import Tensor

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
_BY_LAYER = "a dict of tensors or histograms by label and layer"
_BINS = 4000  # of values that are counted here
_HISTOGRAMS = (
    "tensors or histograms, dicts with `counts` (such as `torch.histc(z, 200, -limit, limit)`), `limit` and `beyond`,"
)


def plot_distributions(
    techniques: Mapping[str, Mapping[str, Tensor | Mapping[str, Any]]],
    ax: Axes | Sequence[Axes] | None = None,
    *,
    values: str = "weight",
) -> tuple[Figure | SubFigure, tuple[Axes, ...]]:
    """Draws densities of weights or potentials, a panel a layer and a line a technique: the first paper's Fig. 3.

    Each panel shows the interval around 0 that holds 99.95 % of the values of every technique or, where more lie beyond
    the bins, all bins, and says how many that are.

    Args:
        techniques: for each label in the legend and each layer its values, a tensor of any shape such as those of
            :func:`~lightning_psp.record_potentials`, or their histogram, a mapping with ``limit``, ``counts``, the
            numbers of values in equal bins from ``-limit`` to ``limit``, and ``beyond``, how many lie outside; the one
            to point out last. All have the same layers and, for a layer, histograms with the same bins.
        ax: axes to draw into, one for each layer; by default a new figure of pyplot.
        values: what is counted, for the horizontal axes.

    Returns:
        The figure, and the axes in the order of the layers.

    Raises:
        TypeError: if `techniques` are neither tensors nor histograms by label and layer.
        ValueError: if there is nothing to draw, values are not finite, a histogram lacks something, bins have no width,
            techniques have different layers, or there are not as many axes as layers.

    Example:
        >>> import torch
        >>> z = torch.randn(10_000)
        >>> figure, (axes,) = plot_distributions({"none": {"fc1": z}, "PSP": {"fc1": z / 2}}, values="potential")
        >>> axes.get_title()
        'fc1'
    """
    check_kind("techniques", techniques, Mapping, _BY_LAYER)
    for each in techniques.values():
        check_kind("techniques", each, Mapping, _BY_LAYER)
        for found in each.values():
            check_kind("techniques", found, (Tensor, Mapping), _HISTOGRAMS)
    techniques = _counted(techniques)
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


def _counted(
    techniques: Mapping[str, Mapping[str, Tensor | Mapping[str, Any]]],
) -> dict[str, dict[str, Mapping[str, Any]]]:
    """The same with histograms of the tensors, of equal bins for all of a layer, which hold all values."""
    limits: dict[str, float] = {}
    for label, each in techniques.items():
        for layer, found in each.items():
            if isinstance(found, Tensor) and found.numel() > 0:
                largest = found.detach().abs().max().item()
                if not math.isfinite(largest):
                    raise ValueError(
                        f"Expected argument `techniques` to have finite values but got {largest} among those of"
                        f" {layer!r} for {label!r}."
                    )
                limits[layer] = max(limits.get(layer, 0.0), largest)
    return {
        label: {
            layer: _histogram(found, limits.get(layer) or 1.0) if isinstance(found, Tensor) else found
            for layer, found in each.items()
        }
        for label, each in techniques.items()
    }


def _histogram(values: Tensor, limit: float) -> dict[str, Any]:
    counts = torch.histc(values.detach().double().cpu(), _BINS, -limit, limit).long()
    return {"limit": limit, "counts": counts.tolist(), "beyond": 0}


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
