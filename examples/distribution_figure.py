"""Distributions of weights or potentials by layer, one line a technique: the first paper's Fig. 3."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from axes_style import tidy

# Technique to layer to histogram: limit, counts and number of values beyond, as from `distributions.Histogram`.
Histograms = Mapping[str, Mapping[str, Mapping[str, Any]]]

STYLES = [{"color": "#0072B2", "linestyle": "--"}, {"color": "#D55E00", "linestyle": "-"}]
SHARE_SHOWN = 0.9995
LEAST_SHOWN = 1e-5  # density, as a share of the largest one


def add_histograms(summaries: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Add the counts of several trainings, layer by layer."""
    return {
        layer: {
            "limit": histogram["limit"],
            "beyond": sum(summary[layer]["beyond"] for summary in summaries),
            "counts": np.sum([summary[layer]["counts"] for summary in summaries], axis=0),
        }
        for layer, histogram in summaries[0].items()
    }


def plot_distributions(techniques: Histograms, values: str, path: Path) -> None:
    """Draw the densities of two techniques, one panel a layer, and save the picture.

    Args:
        techniques: Label of each technique, and its histograms.
        values: What is counted, for the axes.
        path: File to write.
    """
    layers = list(next(iter(techniques.values())))
    figure = Figure(figsize=(3.1 * len(layers), 3.6), dpi=150, layout="constrained")
    for axes, layer in zip(figure.subplots(1, len(layers), squeeze=False)[0], layers, strict=True):
        shown = max(_half_width(histograms[layer]) for histograms in techniques.values())
        least = 0.0
        for (label, histograms), style in zip(techniques.items(), STYLES, strict=True):
            density, edges = _density(histograms[layer], shown)
            least = max(least, LEAST_SHOWN * density.max())
            axes.stairs(density, edges, label=label, linewidth=1.4, **style)
        axes.set_xlim(-shown, shown)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_yscale("log")
        axes.set_ylim(bottom=max(least, axes.get_ylim()[0]))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_title(layer, fontweight="bold")
        axes.set_xlabel("\n".join([values, *_left_out({label: each[layer] for label, each in techniques.items()})]))
        tidy(axes)
    figure.axes[0].set_ylabel("density (log scale)")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    caption = (
        f"Each panel shows the interval around 0 that holds {100 * SHARE_SHOWN:g} % of the values of either technique"
        " or, where more lie beyond, all bins."
    )
    figure.supxlabel(caption, fontsize=9, color="#555555")
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=11, handlelength=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _left_out(histograms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say for each technique how many values lie beyond its bins, where these are more than are left out elsewhere."""
    shares = {
        label: histogram["beyond"] / (sum(histogram["counts"]) + histogram["beyond"])
        for label, histogram in histograms.items()
    }
    if max(shares.values()) <= 1 - SHARE_SHOWN:
        return []
    told = [f"{label.partition(' (')[0]} {100 * share:.1f} %" for label, share in shares.items()]
    return ["beyond: " + ", ".join(told)]


def _half_width(histogram: Mapping[str, Any]) -> float:
    """Half of the narrowest interval around 0, of whole bins, that holds nearly all values."""
    counts = np.asarray(histogram["counts"])
    # The two bins at the same distance from 0 together, the nearest first.
    by_distance = (counts + counts[::-1])[len(counts) // 2 :]
    wanted = SHARE_SHOWN * (counts.sum() + histogram["beyond"])
    bins = np.searchsorted(np.cumsum(by_distance), wanted) + 1
    return histogram["limit"] * min(bins, len(by_distance)) / len(by_distance)


def _density(histogram: Mapping[str, Any], shown: float) -> tuple[np.ndarray, np.ndarray]:
    """Density and edges of bins as wide as they may be with at least 40 of them from ``-shown`` to ``shown``."""
    counts, limit = np.asarray(histogram["counts"], dtype=float), histogram["limit"]
    wanted = 40 * limit / shown
    numbers = [each for each in range(1, len(counts) + 1) if len(counts) % each == 0]
    number = next((each for each in numbers if each >= wanted), len(counts))
    share = counts / (counts.sum() + histogram["beyond"])
    edges = np.linspace(-limit, limit, number + 1)
    return share.reshape(number, -1).sum(axis=1) / np.diff(edges), edges
