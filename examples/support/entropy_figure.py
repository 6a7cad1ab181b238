"""The entropy study's figure: error, PSP-entropy and transfer error against the weight of the entropy term."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from lightning_psp.plotting.style import tidy

# Okabe and Ito's palette, which colour-blind readers tell apart; markers and dashes do so in grey print.
STYLES: list[dict[str, str]] = [
    {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    {"color": "#D55E00", "linestyle": "--", "marker": "s"},
]


@dataclass(frozen=True)
class Run:
    """One setting and what was found with it: errors in per cent, entropies in bits."""

    task: str
    entropy_weight: float
    temperature: float
    seed: int
    error: float
    transfer_error: float
    entropy: dict[str, float]  # of each hidden layer
    z2: dict[str, float]


PANELS: list[tuple[str, str, Callable[[Run], float]]] = [
    ("Error", "wrongly classified (%, log scale)", lambda run: run.error),
    ("PSP-entropy", "mean over hidden layers (bits)", lambda run: statistics.mean(run.entropy.values())),
    ("Transfer error", "wrong among 5 to 9 (%, log scale)", lambda run: run.transfer_error),
]


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draw one row a data set and save the picture.

    Args:
        runs: All runs; those without a weight belong to every temperature.
        path: File to write.
    """
    tasks = list(dict.fromkeys(run.task for run in runs))
    figure = Figure(figsize=(11, 0.6 + 3.1 * len(tasks)), dpi=150, layout="constrained")
    rows = figure.subplots(len(tasks), len(PANELS), squeeze=False)
    for row, task in zip(rows, tasks, strict=True):
        of_task = [run for run in runs if run.task == task]
        for axes, (title, label, value) in zip(row, PANELS, strict=True):
            _draw_panel(axes, of_task, value)
            axes.set_title(f"{title}, {task}", fontweight="bold", fontsize=11)
            axes.set_ylabel(label)
            if title != "PSP-entropy":
                # The smallest errors are what is compared, whatever the largest are.
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 4, 5, 7)))
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axes.yaxis.set_minor_locator(NullLocator())
    for axes in rows[-1]:
        axes.set_xlabel("entropy_weight")
    handles, labels = rows[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, handlelength=3)
    caption = "Mean ± standard deviation over seeds, on unseen images. Grey: no term. Left of it entropy is raised,"
    figure.supxlabel(f"{caption} right of it lowered.", fontsize=9, color="#555555")
    figure.savefig(path)


def _draw_panel(axes: Axes, runs: Sequence[Run], value: Callable[[Run], float]) -> None:
    weights = sorted({run.entropy_weight for run in runs})
    temperatures = list(dict.fromkeys(run.temperature for run in runs))
    # Weights of both signs and several sizes: equal steps show them all.
    for number, (temperature, style) in enumerate(zip(temperatures, STYLES, strict=False)):
        of_temperature = [run for run in runs if run.temperature == temperature or run.entropy_weight == 0]
        found = [[value(run) for run in of_temperature if run.entropy_weight == weight] for weight in weights]
        places = [place for place, values in enumerate(found) if values]
        means = [statistics.mean(found[place]) for place in places]
        deviations = [statistics.stdev(found[place]) if len(found[place]) > 1 else 0.0 for place in places]
        beside = [place + 0.1 * number for place in places]  # so that no error bar hides another
        axes.errorbar(beside, means, deviations, label=f"T = {temperature:g}", capsize=3, **style)
    axes.axvline(weights.index(0.0), color="#BBBBBB", linewidth=1, zorder=0)
    axes.set_xticks(range(len(weights)), [f"{weight:g}".replace("-", "−") for weight in weights])
    axes.tick_params(axis="x", labelsize=9)
    tidy(axes)
    axes.grid(visible=False, axis="x")
