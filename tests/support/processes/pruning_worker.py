"""One of two processes that train a pruned network together; run by `tests/pruning/test_processes.py`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from lightning_psp.pruning import MaskedTraining, random_masks_like
from tests.support.processes import PROCESSES, keep_results
from tests.support.pruning.networks import NETWORKS
from tests.support.pruning.training import Pruned, adamw, loader_for, masks_for
from tests.support.small import quiet_trainer


class ByHand(Pruned):
    """Manual optimisation."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, adamw())
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_index))
        optimizer.step()


class Sharded(Pruned):
    """Each process keeps a part of the weights."""

    def configure_model(self) -> None:
        if not isinstance(self.network.fc1.weight, DTensor):
            for part in (self.network.fc1, self.network.fc2, self.network.fc3, self):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])


def ddp(**settings: Any) -> Strategy:
    return DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=20), **settings)


def sharding() -> Strategy:
    return ModelParallelStrategy(PROCESSES, 1, process_group_backend="gloo", timeout=timedelta(seconds=20))


# Name of a run to the module's class, its strategy, and the arguments of the callback.
RUNS: dict[str, tuple[type[Pruned], Callable[[], Strategy], dict[str, Any]]] = {
    "plain": (Pruned, ddp, {}),
    "buckets": (Pruned, lambda: ddp(gradient_as_bucket_view=True, static_graph=True), {}),
    "manual": (ByHand, ddp, {}),
    "drawn anew": (Pruned, ddp, {"rewind_to": "random", "seed": 3}),
    "sharded": (Sharded, sharding, {}),
}
ERRORS = ("sharded",)


def run(name: str, rank: int, folder: Path) -> dict[str, Any]:
    kind, strategy, arguments = RUNS[name]
    torch.manual_seed(0)
    module = kind(NETWORKS["lenet300"]())
    first = masks_for(module)
    # those of the second process are others, and are not to count
    masks = first if rank == 0 else random_masks_like(first, seed=rank)
    callback = MaskedTraining(masks, **arguments)
    trainer = quiet_trainer(
        callback,
        ModelCheckpoint(folder, filename=name),
        devices=PROCESSES,
        strategy=strategy(),
        max_epochs=2,
        precision="32-true",
        use_distributed_sampler=False,
        enable_checkpointing=True,
    )
    trainer.fit(module, _part(module, rank), _part(module, rank + 7))
    return {
        "masks": callback.state_dict()["masks"],
        "expected": first,
        "seen": module.seen,
        "final": {key: value.clone() for key, value in module.state_dict().items()},
        "sparsity": trainer.callback_metrics["pruning/sparsity"].item(),
    }


def _part(module: Pruned, seed: int) -> DataLoader[Any]:
    return loader_for(module.network, 2, seed=seed)


def main(folder: Path, rank: int) -> None:
    keep_results(folder, rank, {name: partial(run, name, rank, folder) for name in RUNS}, ERRORS)
