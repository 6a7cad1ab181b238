"""Which potentials the PSP gradient of each weight comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from lightning_psp.analysis import GradientParts
from lightning_psp.plotting.style import check_kind, given_axes

LARGEST_FIGURE = 16.0, 14.0  # inches
LEAST_SIZE = 5.6, 3.1  # inches: those of the title and of what stands at the colour bar
LINE = 0.15  # inches from one name to the next
LONGEST_NAME = 8  # letters of a layer's name that stand side by side with others
MOST_CELLS_WITH_NUMBERS = 20, 60  # columns and rows; in smaller cells numbers could not be read


def plot_gradient_parts(
    parts: GradientParts,
    ax: Axes | None = None,
    *,
    parameters: Sequence[str] = ("*weight*",),
    colorbar: bool = True,
) -> tuple[Figure | SubFigure, Axes]:
    """Draws which layers' potentials the PSP gradient of each weight comes from, as a heat map.

    A row is a parameter, a column a layer, and a cell the signed share of the layer's part in the parameter's whole
    gradient, in per cent (:func:`~lightning_psp.analysis.psp_gradient_parts`; Tartaglione et al., 2019, Eq. 14 and
    15). Each row adds up to 100 %. A cell is grey where the layer does not depend on the parameter. In large networks
    the numbers are left out.

    Args:
        parts: what is drawn.
        ax: axes to draw into; by default a new figure of pyplot.
        parameters: glob patterns on parameter names: the rows. By default the weights without the biases.
        colorbar: whether a colour bar is drawn. Its scale is the same in all pictures, from -100 % to 100 %.

    Returns:
        The figure and the axes.

    Raises:
        TypeError: if `parts` is no such result, or `parameters` a string.
        ValueError: if no parameter matches the patterns.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_psp.analysis import psp_gradient_parts
        >>> network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> figure, axes = plot_gradient_parts(psp_gradient_parts(network, torch.randn(5, 4)))
        >>> [label.get_text() for label in axes.get_yticklabels()]
        ['0.weight', '2.weight']
    """
    check_kind("parts", parts, GradientParts, "a result of `psp_gradient_parts`")
    if isinstance(parameters, str):
        raise TypeError(
            "Expected argument `parameters` to be a sequence of glob patterns, such as ('*weight*',), but got"
            f" {parameters!r}."
        )
    rows = [
        row for row, name in enumerate(parts.parameters) if any(fnmatchcase(name, pattern) for pattern in parameters)
    ]
    if not rows:
        raise ValueError(
            f"Expected argument `parameters` to match at least one parameter but got {tuple(parameters)!r}. The"
            f" parameters are {', '.join(parts.parameters)}."
        )
    shares = 100 * parts.shares[rows]
    shares[parts.norms[rows] == 0] = math.nan
    columns = len(parts.layers)
    longest = max(map(len, parts.layers))
    are_upright = columns > 6 or longest > LONGEST_NAME
    if ax is None:
        height = max(1.8 + 0.45 * len(rows), LEAST_SIZE[1]) + (0.1 * longest if are_upright else 0.0)
        size = min(max(3.4 + 0.7 * columns, LEAST_SIZE[0]), LARGEST_FIGURE[0]), min(height, LARGEST_FIGURE[1])
        _, ax = pyplot.subplots(figsize=size, dpi=150, layout="constrained")
    else:
        (ax,) = given_axes(ax, 1, "the shares")
    # From blue by white to red, as usual for numbers of both signs.
    image = ax.imshow(shares.numpy(), cmap="RdBu_r", vmin=-100, vmax=100, aspect="auto")
    if columns <= MOST_CELLS_WITH_NUMBERS[0] and len(rows) <= MOST_CELLS_WITH_NUMBERS[1]:
        for row, column in shares.isfinite().nonzero().tolist():
            share = shares[row, column].item()
            colour = "white" if abs(share) > 60 else "black"
            ax.text(column, row, _rounded(share), ha="center", va="center", color=colour, fontsize=9)
    ax.set_facecolor("#DDDDDD")
    # Of very many, every second name or fewer: those that have a line of their own.
    inches = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())
    named_columns = range(0, columns, math.ceil(columns * LINE / inches.width) if are_upright else 1)
    named_rows = range(0, len(rows), math.ceil(len(rows) * LINE / inches.height))
    ax.set_xticks(named_columns, [parts.layers[each] for each in named_columns], rotation=90 if are_upright else 0)
    ax.set_yticks(named_rows, [parts.parameters[rows[each]] for each in named_rows])
    ax.set_xticks([column - 0.5 for column in range(1, columns)], minor=True)
    ax.set_yticks([row - 0.5 for row in range(1, len(rows))], minor=True)
    ax.grid(which="minor", color="white", linewidth=1.5)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("layer whose potentials are penalised")
    ax.set_ylabel("trained parameter")
    ax.set_title("Where the PSP gradient comes from", fontweight="bold")
    if colorbar:
        beyond = "both" if shares.nan_to_num().abs().max() > 100.5 else "neither"
        ax.figure.colorbar(image, ax=ax, label="share of the gradient (%)", extend=beyond)
    return ax.figure, ax


def _rounded(share: float) -> str:
    """Three digits at most, with a minus sign in place of a hyphen."""
    text = f"{share:.1f}" if abs(share) < 9.95 else f"{share:.0f}"
    return "0.0" if text == "-0.0" else text.replace("-", "−")
