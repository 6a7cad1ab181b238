"""One of two processes that train in a plain loop; run by `tests/recording/test_processes.py`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lightning_psp import psp_penalty, record_potentials
from tests.support.processes import PROCESSES, keep_results, process_group

LAM, BATCH, STEPS = 0.3, 4, 2


class Network(nn.Module):
    """Two hidden layers, the second of which may be computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 8)
        self.third = nn.Linear(8, 3)
        self.use_reentrant: bool | None = None
        self.overwrites = True

    def forward(self, features: Tensor) -> Tensor:
        first = functional.silu(self.first(features))
        if self.use_reentrant is None:
            return self.third(self.compute(first))
        return self.third(checkpoint(self.compute, first, use_reentrant=self.use_reentrant))

    def compute(self, hidden: Tensor) -> Tensor:
        return functional.relu(self.second(hidden), inplace=self.overwrites)


def network() -> Network:
    """The same in each process and in the test."""
    torch.manual_seed(0)
    return Network().double()


def data() -> tuple[Tensor, Tensor]:
    """What both processes share out: the batches of both, step by step."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(STEPS, PROCESSES * BATCH, 6, dtype=torch.float64, generator=generator)
    return features, torch.randint(0, 3, (STEPS, PROCESSES * BATCH), generator=generator)


def shard(model: Network, mesh: DeviceMesh, use_reentrant: bool | None = None, **settings: Any) -> None:
    """Each process keeps a part of the weights and computes with the whole."""
    model.use_reentrant = use_reentrant
    for part in (model.first, model.second, model.third, model):
        fully_shard(part, mesh=mesh, **settings)


def split(model: Network, mesh: DeviceMesh) -> None:
    """Each process computes with a part of the weights."""
    model.overwrites = False  # torch allows it not
    parallelize_module(model, mesh, {"first": ColwiseParallel(), "second": RowwiseParallel()})


RUNS: dict[str, Callable[[Network, DeviceMesh], None]] = {
    "sharded": shard,
    "kept whole between the passes": partial(shard, reshard_after_forward=False),
    "checkpointed": partial(shard, use_reentrant=False),
    "checkpointed reentrantly": partial(shard, use_reentrant=True),
    "split": split,
}


def train(prepare: Callable[[Network, DeviceMesh], None], rank: int) -> dict[str, Any]:
    """Gradients of two accumulated batches, of which this process has its part."""
    model = network()
    prepare(model, init_device_mesh("cpu", (PROCESSES,)))
    for step, (features, labels) in enumerate(zip(*data(), strict=True)):
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(step == STEPS - 1)
        with record_potentials(model) as potentials:
            loss = functional.cross_entropy(model(features[rank::PROCESSES]), labels[rank::PROCESSES])
        (loss + LAM * psp_penalty(potentials)).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    return {"gradients": [grad.full_tensor() if isinstance(grad, DTensor) else grad for grad in gradients]}


def main(folder: Path, rank: int) -> None:
    with process_group(folder, rank):
        runs = {name: partial(train, prepare, rank) for name, prepare in RUNS.items()}
        keep_results(folder, rank, runs, may_fail=("split",))
