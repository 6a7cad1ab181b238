"""Values over the epochs of trainings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lightning_psp.plotting.logs import named, read_log
from lightning_psp.plotting.style import (
    check_kind,
    check_names,
    explain,
    given_axes,
    label_plainly,
    legend_above,
    lone,
    new_axes,
    styles,
    tidy,
    with_log_scale,
)

# A training: its log's file or folder, or the values themselves by key, one an epoch.
Log = str | Path | Mapping[str, Sequence[float]]

# Of what is logged, by what its key names: its title, and the unit of a network's value and of a layer's.
_MEASURES = {
    "z2": ("Size of the potentials", *("mean squared potential ⟨z²⟩",) * 2),
    "entropy": ("PSP-entropy", "mean over hidden layers (bits)", "mean over units (bits)"),
    "entropy2": (
        "Second-order PSP-entropy",
        "mean over hidden layers (bits a pair)",
        "mean over pairs of units (bits)",
    ),
}
_STAGES = {"train": ", in training", "val": "", "test": ", test set"}
_OTHERS = {
    "psp/z2": ("Size of the potentials, by step", "mean squared potential ⟨z²⟩"),
    "psp/lam": ("Strength of the penalty", "λ"),
    "psp/penalty": ("Penalty", "λR"),
    "psp/penalty_share": ("Penalty over loss", "λR / |loss|"),
    "val_error": ("Validation error", "val_error"),
    "val_loss": ("Validation loss", "val_loss"),
}


def plot_curves(
    trainings: Mapping[str, Log | Sequence[Log]],
    ax: Axes | Sequence[Axes] | None = None,
    *,
    keys: Sequence[str] = ("val_error", "psp/z2_val"),
    titles: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    log_scale: bool = True,
) -> tuple[Figure | SubFigure, tuple[Axes, ...]]:
    """Draws logged values over the epochs, a panel a key and a line a technique: the first paper's Fig. 2.

    Of several trainings of a technique, such as several seeds, the line is the mean, with a band from the lowest to the
    highest (Tartaglione et al., 2019, Fig. 2 shows error and ⟨z²⟩).

    Args:
        trainings: for each label in the legend, one training or several; the one to point out last. A training is the
            ``metrics.csv`` of Lightning's CSVLogger or a folder with it, a folder or file of TensorBoard's events, or a
            mapping from key to one value an epoch.
        ax: axes to draw into, one for each key; by default a new figure of pyplot.
        keys: what is drawn, under the names that it is logged by.
        titles: title of each key's panel, where it is to be another than the default.
        units: label of each key's vertical axis, likewise.
        log_scale: whether the vertical axes are logarithmic; that of a key with a value of 0 or below never is.

    Returns:
        The figure, and the axes in the order of `keys`.

    Raises:
        TypeError: if `trainings` is no mapping to logs, `keys` a single string, or `titles` or `units` no mapping.
        ValueError: if `trainings` or `keys` is empty, if there are not as many axes as keys, or if a log lacks a key,
            which names those that it has, or trainings of a technique have no epoch in common.
        FileNotFoundError: if a path leads to no log.
        ModuleNotFoundError: if TensorBoard, which reads its events, is not installed.

    Example:
        >>> runs = {"none": {"val_error": [0.3, 0.2], "psp/z2_val": [1.0, 2.0]},
        ...         "PSP": {"val_error": [0.3, 0.1], "psp/z2_val": [0.9, 0.8]}}
        >>> figure, (error, z2) = plot_curves(runs)
        >>> z2.get_ylabel()
        'mean squared potential ⟨z²⟩ (log scale)'
    """
    check_kind("trainings", trainings, Mapping, "a dict of logs by label, such as {'PSP': 'logs/version_0'},")
    check_names("keys", keys)
    for name, texts in (("titles", titles), ("units", units)):
        if texts is not None:
            check_kind(name, texts, Mapping, "a dict of texts by key, such as {'val_error': 'error (%)'},")
    if not trainings or not keys:
        raise ValueError(f"Expected arguments `trainings` and `keys` not to be empty but got {trainings!r}, {keys!r}.")
    curves = {label: _read(label, logs, keys) for label, logs in trainings.items()}
    axes = new_axes(len(keys), (5, 4.4)) if ax is None else given_axes(ax, len(keys), ", ".join(keys))
    for key, panel in zip(keys, axes, strict=True):
        for (label, runs), style in zip(curves.items(), styles(len(curves)), strict=True):
            _draw_band(panel, [run[key] for run in runs], label, style)
        title, unit = _described(key)
        panel.set_title((titles or {}).get(key, title), fontweight="bold")
        unit = (units or {}).get(key, unit)
        drawn = np.concatenate([run[key][1] for runs in curves.values() for run in runs])
        is_logarithmic = log_scale and not (drawn <= 0).any() and bool(np.isfinite(drawn).any())
        panel.set_ylabel(with_log_scale(unit) if is_logarithmic else unit)
        panel.set_xlabel("epoch")
        panel.set_xlim(left=0)
        panel.xaxis.set_major_locator(MaxNLocator("auto", steps=(1, 2, 5, 10), integer=True, min_n_ticks=1))
        if is_logarithmic:
            panel.set_yscale("log")
            label_plainly(panel.yaxis)
        tidy(panel)
    figure = axes[0].figure
    if isinstance(figure, Figure) and ax is None:
        _explain(figure, curves)
    else:
        axes[0].legend(frameon=False, handlelength=3)
    return figure, tuple(axes)


def _described(key: str) -> tuple[str, str]:
    """The title and the unit of what is logged under a key; the key itself where nothing is known of it."""
    kind, _, rest = key.partition("/")
    measure, _, stage = (rest if kind == "psp" else kind.removeprefix("psp_")).rpartition("_")
    if not (kind.startswith("psp") and rest) or measure not in _MEASURES or stage not in _STAGES:
        return _OTHERS.get(key, (key, key))
    title, of_network, of_layer = _MEASURES[measure]
    title += _STAGES[stage]
    return (title, of_network) if kind == "psp" else (f"{title}: {rest}", of_layer)


def _read(label: str, logs: Log | Sequence[Log], keys: Sequence[str]) -> list[dict[str, NDArray[np.float64]]]:
    """For each training the epochs (from 1) and values of each key, ``[2, epochs]``."""
    several = [logs] if isinstance(logs, (str, Path, Mapping)) or not isinstance(logs, Iterable) else list(logs)
    for log in several:
        if not isinstance(log, (str, Path, Mapping)):
            raise TypeError(
                "Expected argument `trainings` to have paths, or dicts from key to values, for each label but got"
                f" {log!r} for {label!r}."
            )
    if not several:
        raise ValueError(f"Expected argument `trainings` to have at least one training of {label!r} but got none.")
    return [_values(log, keys) if isinstance(log, Mapping) else read_log(Path(log), keys) for log in several]


def _values(log: Mapping[str, Sequence[float]], keys: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    missing = [key for key in keys if key not in log]
    if missing:
        raise ValueError(
            f"Expected a training with values of {missing[0]!r} but got one with {named(log, missing[0])}."
        )
    values = {key: np.asarray(log[key], dtype=float) for key in keys}
    for key, each in values.items():
        if each.ndim != 1:
            raise TypeError(f"Expected a training with one number an epoch for {key!r} but got {log[key]!r}.")
    return {key: np.stack([np.arange(1.0, len(each) + 1), each]) for key, each in values.items()}


def _draw_band(axes: Axes, runs: Sequence[NDArray[np.float64]], label: str, style: dict[str, Any]) -> None:
    """Draws the mean over trainings, as far as all have come, with a band from the lowest of them to the highest."""
    epochs = runs[0][0]
    for run in runs[1:]:
        epochs = np.intersect1d(epochs, run[0])
    if len(epochs) == 0:
        raise ValueError(f"Expected the trainings of {label!r} to have an epoch in common but got none.")
    values = np.stack([run[1][np.isin(run[0], epochs)] for run in runs])
    means = values.mean(axis=0)
    marked = lone(means)
    marker = "o" if marked else None
    axes.plot(epochs, means, label=label, linewidth=1.8, marker=marker, markevery=marked or None, **style)
    if len(runs) > 1:
        lowest, highest = values.min(axis=0), values.max(axis=0)
        axes.fill_between(epochs, lowest, highest, color=style["color"], alpha=0.15, linewidth=0)


def _explain(figure: Figure, curves: Mapping[str, Sequence[object]]) -> None:
    legend_above(figure, figure.axes[0])
    numbers = sorted({len(runs) for runs in curves.values()})
    if numbers[-1] > 1:
        caption = f"Lines: mean of {' or '.join(map(str, numbers))} trainings; bands: lowest to highest of them."
        explain(figure, caption)
