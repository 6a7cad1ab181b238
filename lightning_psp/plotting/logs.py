"""Values of each epoch, from the logs that Lightning's loggers write."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

_EVENTS = "events.out.tfevents*"
_OF_LAYERS = "psp_"  # what the names of their values begin with

# For each key the epoch, step and value of each entry, in the order in which they were written.
_Entries: TypeAlias = dict[str, list[tuple[int, int, "str | float"]]]


def read_log(path: Path, keys: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Reads values of a CSVLogger's or TensorBoard's log; of several in an epoch the last.

    What ``trainer.validate`` or ``trainer.test`` has written after a training counts for the last epoch that was
    trained, where that has no such value of its own: Lightning writes it under the number of the epoch that would come
    next.

    Args:
        path: ``metrics.csv``, a file of TensorBoard's events, or a folder with either.
        keys: names that the values were logged by.

    Returns:
        For each key ``[2, epochs]``: epochs, the first one 1, and values.

    Raises:
        FileNotFoundError: if there is no log.
        ValueError: if a key is not in the log.
    """
    if path.is_dir() and (path / "metrics.csv").exists():
        path = path / "metrics.csv"
    if path.suffix == ".csv" and path.exists():
        found = _read_csv(path)
    elif (path.match(_EVENTS) and path.exists()) or (path.is_dir() and any(path.glob(_EVENTS))):
        found = _read_events(path)
    else:
        raise FileNotFoundError(
            f"Expected {path} to be a metrics.csv or a file of TensorBoard's events, or a folder with either of"
            f" them{_folders_below(path)}."
        )
    missing = [key for key in keys if key not in found]
    if missing:
        raise ValueError(f"Expected {path} to have values of {missing[0]!r} but found {named(found, missing[0])}.")
    after = _epoch_after_the_training(found)
    return {key: _by_epoch(found[key], after) for key in keys}


def named(keys: Iterable[str], missing: str) -> str:
    """The keys of a log and what to do with them: of those of single layers, what is like a missing one."""
    of_layers = [key for key in keys if key.startswith(_OF_LAYERS)]
    alike = get_close_matches(missing, of_layers, n=5, cutoff=0) if missing.startswith(_OF_LAYERS) else []
    shown = [*sorted(key for key in keys if key not in of_layers), *alike]
    return f"{', '.join(shown)}: choose with argument `keys`"


def _folders_below(path: Path) -> str:
    """Where logs are that a folder above them was given for."""
    logs = [log for below in ("*", "*/*") for name in ("metrics.csv", _EVENTS) for log in path.glob(f"{below}/{name}")]
    folders = sorted({str(log.parent.relative_to(path)) for log in logs})
    if not folders:
        return ""
    return f". It has logs in {', '.join(folders[:5])}{', …' if len(folders) > 5 else ''}: choose among them"


def _by_epoch(entries: Iterable[tuple[int, int, str | float]], after: int | None) -> NDArray[np.float64]:
    """Epochs from 1 on, and the last value of each."""
    last = {epoch: float(value) for epoch, _, value in entries}
    if after in last:
        last.setdefault(after - 1, last.pop(after))
    return np.array([[epoch + 1.0, value] for epoch, value in sorted(last.items())]).T


def _epoch_after_the_training(found: _Entries) -> int | None:
    """The last epoch, where nothing of it was trained and its values are of an evaluation after the training.

    All of these have the step that comes next, which what a fit logs has in the first step of an epoch alone. Where
    epochs are single steps, it is not trained if it lacks a key that all others have.
    """
    steps: dict[int, set[int]] = {}
    keys: dict[int, set[str]] = {}
    for key, entries in found.items():
        for epoch, step, _ in entries:
            steps.setdefault(epoch, set()).add(step)
            keys.setdefault(epoch, set()).add(key)
    *trained, last = sorted(steps) or [0]
    if not trained:
        return None
    ends = [-1, *(max(steps[epoch]) for epoch in trained)]
    if steps[last] != {ends[-1] + 1}:
        return None
    has_long_epochs = ends[-1] - ends[-2] > 1
    return last if has_long_epochs or set.intersection(*(keys[epoch] for epoch in trained)) - keys[last] else None


def _read_csv(path: Path) -> _Entries:
    """The text of each value, for what is not asked for may be no number."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    # Callbacks such as LearningRateMonitor write rows without an epoch, which is that of another row of the step.
    epochs = {row.get("step"): row["epoch"] for row in rows if row.get("epoch")}
    found: _Entries = {}
    for row in rows:
        epoch, step = row.get("epoch") or epochs.get(row.get("step")), row.get("step") or -1
        for key, text in row.items():
            if text and epoch and key not in ("epoch", "step"):
                found.setdefault(key, []).append((int(float(epoch)), int(float(step)), text))
    return found


def _read_events(path: Path) -> _Entries:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} holds TensorBoard's events, which `tensorboard` reads, but it is not installed:"
            " pip install tensorboard"
        ) from error
    events = EventAccumulator(str(path), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    if "epoch" not in tags:
        raise ValueError(f"Expected {path} to have values of 'epoch', as Lightning logs them, but found {tags}.")
    epochs = {event.step: int(event.value) for event in events.Scalars("epoch")}
    return {
        tag: [(epochs[event.step], event.step, event.value) for event in events.Scalars(tag) if event.step in epochs]
        for tag in tags
        if tag != "epoch"
    }
