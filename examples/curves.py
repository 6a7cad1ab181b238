"""Error and ⟨z²⟩ over the epochs, one line a technique: the quickstart's picture, and the first paper's Fig. 2."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from axes_style import label_plainly, tidy

# Okabe and Ito's palette, which colour-blind readers tell apart; the dashes do so in grey print.
STYLES: list[dict[str, str]] = [
    {"color": "#555555", "linestyle": ":"},
    {"color": "#0072B2", "linestyle": "--"},
    {"color": "#009E73", "linestyle": "-."},
]
STYLE_OF_LAST: dict[str, str] = {"color": "#D55E00", "linestyle": "-"}


@dataclass(frozen=True)
class Curves:
    """The curves of one technique: for each seed, one value an epoch."""

    label: str
    error: Sequence[Sequence[float]]  # % of the validation set
    z2: Sequence[Sequence[float]]


def plot_curves(
    techniques: Sequence[Curves],
    path: Path,
    title: str = "Error on unseen digits",
    measured_on: str = "the validation set",
) -> None:
    """Draw error and ⟨z²⟩ side by side and save the picture.

    Args:
        techniques: The curves of up to four techniques, the one to point out last.
        path: File to write; its folder is made where it is missing.
        title: Title of the errors.
        measured_on: The data that error and ⟨z²⟩ are of.
    """
    # A Figure of its own, without pyplot, needs no display and leaves no global state.
    figure = Figure(figsize=(10, 4.4), dpi=150, layout="constrained")
    error_axes, z2_axes = figure.subplots(1, 2)
    for technique, style in zip(techniques, [*STYLES[: len(techniques) - 1], STYLE_OF_LAST], strict=True):
        _draw_band(error_axes, technique.error, technique.label, style)
        _draw_band(z2_axes, technique.z2, technique.label, style)

    error_axes.set_title(title, fontweight="bold")
    error_axes.set_ylabel("wrongly classified (%, log scale)")
    z2_axes.set_title("Size of the potentials", fontweight="bold")
    z2_axes.set_ylabel("mean squared potential ⟨z²⟩ (log scale)")

    for axes in (error_axes, z2_axes):
        axes.set_yscale("log")
        label_plainly(axes.yaxis)
        axes.set_xlabel("epoch")
        axes.set_xlim(0, len(techniques[0].error[0]))
        tidy(axes)

    handles, labels = error_axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=len(techniques),
        frameon=False,
        fontsize=11,
        handlelength=3,
    )
    caption = f"Both measured on {measured_on} after each epoch."
    numbers = sorted({len(technique.error) for technique in techniques})
    if numbers[-1] > 1:
        caption += f" Lines: mean of {' or '.join(map(str, numbers))} trainings; bands: lowest to highest of them."
    figure.supxlabel(caption, fontsize=9, color="#555555")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_band(axes: Axes, seeds: Sequence[Sequence[float]], label: str, style: dict[str, str]) -> None:
    """Draw the mean over the seeds, with a band from the lowest of them to the highest."""
    values = np.asarray(seeds)
    epochs = np.arange(1, values.shape[1] + 1)
    axes.plot(epochs, values.mean(axis=0), label=label, linewidth=1.8, **style)
    axes.fill_between(
        epochs,
        values.min(axis=0),
        values.max(axis=0),
        color=style["color"],
        alpha=0.15,
        linewidth=0,
    )
