"""One of two processes that fill the same metrics; run by `tests/metrics/test_processes.py`."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_psp.metrics import MeanSquarePotential, PSPEntropy
from tests.support.processes import keep_results, process_group

CLASSES = 3
Batch = tuple[Tensor, Tensor]


def data(units: int = 9) -> Batch:
    """What both processes share out."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, units, generator=generator), torch.randint(0, CLASSES, (40,), generator=generator)


def uneven(rank: int) -> list[Batch]:
    """Three batches and two, of different sizes."""
    z, target = data()
    rows = [slice(0, 10), slice(10, 14), slice(14, 29)] if rank == 0 else [slice(29, 37), slice(37, 40)]
    return [(z[part], target[part]) for part in rows]


def by_class(rank: int) -> list[Batch]:
    """The second process has the samples of the last class, the first has the others."""
    z, target = data()
    own = (target == CLASSES - 1) == bool(rank)
    return [(z[own], target[own])]


def one_rests(rank: int) -> list[Batch]:
    """All samples are with the second process."""
    return [data()] if rank == 1 else []


def both_rest(rank: int) -> list[Batch]:
    """No process has a sample."""
    return []


def different_units(rank: int) -> list[Batch]:
    """The layer of the second process has one unit more."""
    return [data(9 + rank)]


RUNS = {run.__name__: run for run in (uneven, by_class, one_rests, both_rest, different_units)}


def value_of(metric: Any, name: str) -> Any:
    try:
        return getattr(metric, name)()
    except ValueError as error:
        return str(error)


def kept_and_gone_on(batches: list[Batch], order: int) -> Tensor:
    """The entropy of the batches of all processes, and of one more that each of them has."""
    metric = PSPEntropy(CLASSES, order, sync_on_compute=False)
    for z, target in batches:
        metric.update(z, target)
    metric.keep_synchronised()
    z, target = data()
    metric.update(-z.roll(1, dims=0), target)
    value: Tensor = metric.compute()
    return value


def run(name: str, rank: int) -> dict[str, Any]:
    metrics: dict[str, Any] = {f"order {order}": PSPEntropy(CLASSES, order, max_sets=100) for order in (1, 2, 3, 5)}
    metrics["units"] = PSPEntropy(CLASSES, reduction="none")
    metrics["square"] = MeanSquarePotential()
    found: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for key, metric in metrics.items():
            for z, target in RUNS[name](rank):
                metric.update(*((z,) if key == "square" else (z, target)))
            found[key] = value_of(metric, "compute")
            if key.startswith("order"):
                found[f"estimate of {key}"] = value_of(metric, "estimate")
        found["classwise"] = value_of(metrics["order 1"], "classwise") if name != "both_rest" else None
        for order in (1, 2):  # each goes on with its own samples
            metric = metrics[f"order {order}"]
            for z, target in uneven(rank) if name != "different_units" else []:
                metric.update(z, target)
            found[f"again order {order}"] = value_of(metric, "compute")
        if name != "different_units":
            found.update({f"kept order {order}": kept_and_gone_on(RUNS[name](rank), order) for order in (1, 2)})
    return {"values": found, "warnings": [str(warning.message) for warning in said]}


def main(folder: Path, rank: int) -> None:
    with process_group(folder, rank):
        keep_results(folder, rank, {name: partial(run, name, rank) for name in RUNS})
