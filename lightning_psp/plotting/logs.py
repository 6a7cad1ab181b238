"""Values of each epoch, from the logs that Lightning's loggers write."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

_EVENTS = "events.out.tfevents*"


def read_log(path: Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads values of a CSVLogger's or TensorBoard's log; of several in an epoch the last.

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
        found: Mapping[str, Mapping[int, str | float]] = _read_csv(path)
    elif (path.match(_EVENTS) and path.exists()) or (path.is_dir() and any(path.glob(_EVENTS))):
        found = _read_events(path)
    else:
        raise FileNotFoundError(
            f"Expected {path} to be a metrics.csv or a file of TensorBoard's events, or a folder with either of them."
        )
    missing = [key for key in keys if key not in found]
    if missing:
        raise ValueError(f"Expected {path} to have values of {missing[0]!r} but found {', '.join(sorted(found))}.")
    by_epoch = {key: sorted(found[key].items()) for key in keys}
    return {key: np.array([[epoch + 1.0, float(value)] for epoch, value in each]).T for key, each in by_epoch.items()}


def _read_csv(path: Path) -> dict[str, dict[int, str]]:
    """The text of each value, for what is not asked for may be no number."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    # Callbacks such as LearningRateMonitor write rows without an epoch, which is that of another row of the step.
    epochs = {row.get("step"): row["epoch"] for row in rows if row.get("epoch")}
    values: dict[str, dict[int, str]] = {}
    for row in rows:
        epoch = row.get("epoch") or epochs.get(row.get("step"))
        for key, text in row.items():
            if text and epoch and key not in ("epoch", "step"):
                values.setdefault(key, {})[int(float(epoch))] = text
    return values


def _read_events(path: Path) -> dict[str, dict[int, float]]:
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
    return {tag: _by_epoch(events.Scalars(tag), epochs) for tag in tags if tag != "epoch"}


def _by_epoch(events: Sequence[object], epochs: Mapping[int, int]) -> dict[int, float]:
    return {epochs[event.step]: event.value for event in events if event.step in epochs}  # type: ignore[attr-defined]
