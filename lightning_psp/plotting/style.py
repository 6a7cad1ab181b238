"""What all pictures have in common."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

# Okabe and Ito's palette, which colour-blind readers tell apart; dashes and markers do so in grey print.
_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#555555", "linestyle": ":", "marker": "o"},
    {"color": "#0072B2", "linestyle": "--", "marker": "s"},
    {"color": "#009E73", "linestyle": "-.", "marker": "^"},
    {"color": "#CC79A7", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "v"},
    {"color": "#E69F00", "linestyle": (0, (1, 1)), "marker": "P"},
    {"color": "#56B4E9", "linestyle": (0, (3, 1, 1, 1)), "marker": "X"},
)
_EMPHASISED: dict[str, Any] = {"color": "#D55E00", "linestyle": "-", "marker": "D"}

_WIDEST = 20.0  # inches: six panels of distributions, four of curves

FAINT = "#767676"  # captions and marks beside the data, read on white and on black alike


def styles(number: int, markers: bool = False) -> list[dict[str, Any]]:
    """Gives styles of lines, the one to point out last.

    Args:
        number: how many are needed; beyond seven they come again.
        markers: whether the lines have markers.
    """
    chosen = cycle(_STYLES if number > 2 else _STYLES[1:])  # two lines: blue and vermilion differ most
    drawn = [dict(next(chosen)) for _ in range(number - 1)] + [dict(_EMPHASISED)]
    return drawn if markers else [{key: style[key] for key in ("color", "linestyle")} for style in drawn]


def new_axes(number: int, size: tuple[float, float]) -> list[Axes]:
    """Makes axes side by side in a new figure of pyplot, in as many rows as a page is wide for.

    Args:
        number: how many axes.
        size: width and height of each in inches.
    """
    rows = math.ceil(number / max(1, int(_WIDEST / size[0])))
    columns = math.ceil(number / rows)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(size[0] * columns, size[1] * rows), dpi=150, layout="constrained", squeeze=False
    )
    for left_over in axes.flat[number:]:
        figure.delaxes(left_over)
    return list(axes.flat[:number])


def given_axes(ax: Axes | Sequence[Axes], number: int, shown: str) -> list[Axes]:
    """Checks the axes that a user gave.

    Args:
        ax: axes, or a sequence of them.
        number: how many are needed.
        shown: what they show, one each, for the message.

    Raises:
        TypeError: if they are no axes.
        ValueError: if there are not as many.
    """
    axes = [ax] if isinstance(ax, Axes) or not isinstance(ax, Iterable) else list(ax)
    wrong = [each for each in axes if not isinstance(each, Axes)]
    if wrong:
        raise TypeError(
            f"Expected argument `ax` to be axes of matplotlib but got {ax!r}. Give other arguments by name."
        )
    if len(axes) != number:
        raise ValueError(f"Expected argument `ax` to be {number} axes, one for each of {shown}, but got {len(axes)}.")
    return axes


def check_kind(name: str, value: Any, kind: type | tuple[type, ...], meaning: str) -> None:
    """Raises a TypeError that says what an argument means, unless it is of a kind, or of one of several."""
    if not isinstance(value, kind):
        raise TypeError(f"Expected argument `{name}` to be {meaning} but got {type(value).__name__}.")


def check_names(name: str, value: Any, example: Sequence[str] | None = None) -> None:
    """Raises a TypeError unless an argument is a sequence of names, and not a single one.

    Args:
        name: name of the argument.
        value: the argument.
        example: what it may be, for the message; by default the single name that was given, in a sequence.
    """
    if isinstance(value, str) or not isinstance(value, Iterable):
        shown = example or ((value,) if isinstance(value, str) else None)
        such_as = f", such as {shown!r}," if shown else ""
        raise TypeError(f"Expected argument `{name}` to be a sequence of names{such_as} but got {value!r}.")


def tidy(axes: Axes) -> None:
    """Draws a faint grid behind the lines, and no frame."""
    axes.grid(color="#808080", alpha=0.2, linewidth=0.8)  # faint on any background
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def lone(values: Any) -> list[int]:
    """The numbers of the finite values without another beside them, of which a line shows nothing: to be marked."""
    is_finite = np.pad(np.isfinite(values), 1)
    return [int(each) for each in np.flatnonzero(is_finite[1:-1] & ~is_finite[:-2] & ~is_finite[2:])]


def legend_above(figure: Figure, axes: Axes) -> None:
    """Puts the legend of axes above all panels, in as many columns, four at most, as the figure is wide for."""
    handles, labels = axes.get_legend_handles_labels()
    # Inches: a line, what is around it, and letters of this size.
    widths = [0.85 + 0.082 * len(label) for label in labels]
    columns = min(len(labels), 4)
    while columns > 1 and sum(max(column) for column in np.array_split(widths, columns)) > figure.get_figwidth():
        columns -= 1
    figure.legend(
        handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=11, handlelength=3
    )


def in_lines(name: str, axes: Axes) -> str:
    """A name in lines that are no wider than axes, as a title of theirs; broken behind its dots alone."""
    letters = axes.get_window_extent().width / axes.figure.dpi / 0.115  # inches of a bold letter of this size
    lines = [""]
    for part in re.findall(r"[^.]*\.+|[^.]+", name):
        if lines[-1] and len(lines[-1]) + len(part) > letters:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def explain(figure: Figure, text: str) -> None:
    """Writes a caption below all panels, in lines as long as the figure is wide."""
    characters = int(14 * figure.get_figwidth())  # of this size
    figure.supxlabel(textwrap.fill(text, characters), fontsize=9, color=FAINT)


def label_plainly(axis: Axis, interval: tuple[float, float] | None = None) -> None:
    """Labels a logarithmic axis with 1, 2, 5, 10, … or more in place of powers of ten, over many decades 1, 10, ….

    Args:
        axis: an axis on which all is drawn.
        interval: lowest and highest value, by default those drawn.
    """
    lowest, highest = interval or axis.get_data_interval()
    if highest > 1e5 * lowest:
        factors: tuple[float, ...] = (1,)
    else:
        factors = (1, 2, 5) if highest > 6 * lowest or highest == lowest else (1, 1.2, 1.5, *range(2, 10))
    # A single value has a decade to either side.
    are_powers = highest > 3 * lowest or highest == lowest
    axis.set_major_locator(LogLocator(subs=factors) if are_powers else MaxNLocator(6, steps=(1, 2, 5, 10)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def with_log_scale(unit: str) -> str:
    """The label of an axis that is logarithmic."""
    return f"{unit[:-1]}, log scale)" if unit.endswith(")") else f"{unit} (log scale)"
