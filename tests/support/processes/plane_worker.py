"""One of two processes that share the points of planes; run by `tests/analysis/test_plane_processes.py`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from lightning_psp.analysis import loss_plane
from tests.support.analysis.planes import MLP, Normalised, batches, solutions
from tests.support.processes import keep_results, process_group

SIZE = (3, 3)


def arguments() -> tuple[Any, ...]:
    """A network, two solutions and data."""
    network = MLP().double()
    return network, *solutions(network), batches()


class Counted:
    """The default loss, with an error at the n-th call."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.calls, self._fails_at = 0, fails_at

    def __call__(self, module: nn.Module, batch: Any) -> torch.Tensor:
        self.calls += 1
        if self.calls == self._fails_at:
            raise ArithmeticError("of this process alone")
        return functional.cross_entropy(module(batch[0]), batch[1])


def message_of(call: Any) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def run(folder: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    loss = Counted()
    plane = loss_plane(*arguments(), loss=loss, size=SIZE, by_layer=True)
    found["values"], found["layers"], found["calls"] = plane.values, plane.layers, loss.calls
    path = folder / "points.pt"
    settings = {"size": SIZE, "path": path}
    failing = Counted(fails_at=7 if rank == 1 else None)  # in its third point of four
    found["failure"] = message_of(lambda: loss_plane(*arguments(), loss=failing, **settings))
    distributed.barrier()
    found["files"] = sorted(file.name for file in folder.glob("points*"))
    distributed.barrier()
    rest = Counted()
    found["resumed"], found["rest"] = loss_plane(*arguments(), loss=rest, **settings).values, rest.calls
    distributed.barrier()
    found["files after"] = sorted(file.name for file in folder.glob("points*"))
    distributed.barrier()
    network, first, second, data = arguments()
    found["other data"] = message_of(lambda: loss_plane(network, first, second, data[: 2 + rank], size=SIZE))
    found["other file"] = message_of(lambda: loss_plane(*arguments(), size=SIZE, margin=0.5, path=path))
    wrapped = DistributedDataParallel(network)
    found["wrapped"] = message_of(lambda: loss_plane(wrapped, first, second, data))
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(Normalised())
    first, second = solutions(synchronised)
    found["synchronised"] = message_of(
        lambda: loss_plane(synchronised, first, second, batches(dtype=torch.float32), batch_norm="reestimate")
    )
    return found


def main(folder: Path, rank: int) -> None:
    with process_group(folder, rank):
        keep_results(folder, rank, {"found": partial(run, folder, rank)})
