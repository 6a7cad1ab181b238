"""One of two processes that find λ together; run by `tests/callback/auto_lam/test_processes.py`."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from lightning_psp import PSPCallback
from tests.support.auto_lam import Lams
from tests.support.processes import PROCESSES, keep_results
from tests.support.processes.training_worker import Batch, Compiled, DeadHead, Distributed, OneRestsFirst, parts
from tests.support.small import quiet_trainer

STEPS = 21


class OneHasAnInfiniteLoss(Distributed):
    """In its first step the second process has no finite gradient, and no weight changes."""

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        loss = super().training_step(batch, batch_index)
        return loss * float("inf") if batch_index == 0 and self.global_rank == 1 else loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        if self.global_step == 0:
            optimizer.zero_grad()


# Name to the kind of module, settings of the strategy and of the trainer, and arguments of the callback.
RUNS: dict[str, tuple[type[Distributed], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "plain": (Distributed, {}, {}, {}),
    "accumulated": (Distributed, {}, {"accumulate_grad_batches": 2}, {"reduction": "sum"}),
    "dead head": (DeadHead, {"find_unused_parameters": True}, {}, {}),
    "squared mean": (Distributed, {}, {}, {"reduction": "squared_mean"}),
    "views of buckets": (Distributed, {"gradient_as_bucket_view": True}, {}, {}),
    "resting first": (OneRestsFirst, {}, {}, {}),
    "infinite": (OneHasAnInfiniteLoss, {}, {}, {}),
    "compiled": (Compiled, {}, {}, {}),
    "static graph": (Distributed, {"static_graph": True}, {}, {}),
}
REFUSED = {"static graph"}


def run(name: str, rank: int) -> dict[str, Any]:
    kind, strategy, settings, arguments = RUNS[name]
    torch.manual_seed(0)
    module, lams, callback = kind().double(), Lams(), PSPCallback(lam="auto", entropy=(), **arguments)
    trainer = quiet_trainer(
        callback,
        lams,
        devices=PROCESSES,
        strategy=DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=20), **strategy),
        use_distributed_sampler=False,
        **settings,
    )
    trainer.fit(module, parts(rank, STEPS * settings.get("accumulate_grad_batches", 1)))
    return {
        "gradients": module.gradients,
        "weights": module.weights,
        "lams": lams.values,
        "means": callback.state_dict()["auto_lam"]["means"],
        "final": {name: value.detach().clone() for name, value in module.state_dict().items()},
    }


def main(folder: Path, rank: int) -> None:
    keep_results(folder, rank, {name: partial(run, name, rank) for name in RUNS}, REFUSED)
