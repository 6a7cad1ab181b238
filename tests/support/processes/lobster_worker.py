"""One of two processes that train and prune a network together; run by `tests.pruning.test_lobster_processes`."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from lightning_psp.pruning import LobsterPruning
from tests.support.processes import PROCESSES, keep_results
from tests.support.pruning.networks import NETWORKS
from tests.support.pruning.training import Pruned, adamw, loader_for
from tests.support.small import quiet_trainer

EPOCHS, TOLERANCE = 30, 0.1


class Differing(Pruned):
    """Each process logs the loss of its own validation data; they are very different."""

    is_synchronised = False

    def look(self, place: str) -> None:
        """Nothing is looked at here."""

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        loss = self.loss(batch) * (1 + 3 * self.global_rank)
        self.log("val_loss", loss, batch_size=4, sync_dist=self.is_synchronised)


class Synchronised(Differing):
    """Both log the mean over processes."""

    is_synchronised = True


RUNS = {"differing": Differing, "synchronised": Synchronised}


def run(name: str, rank: int, folder: Path, checkpoint: Path | None = None) -> dict[str, Any]:
    torch.manual_seed(0)
    module = RUNS[name](NETWORKS["lenet300"](), adamw())
    pruning = LobsterPruning(lam=1e-3, tolerance=TOLERANCE, patience=3, min_improvement=1.0)
    trainer = quiet_trainer(
        pruning,
        ModelCheckpoint(folder, name + " {epoch}", save_top_k=-1),
        devices=PROCESSES,
        strategy=DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=20)),
        max_epochs=EPOCHS,
        precision="32-true",
        use_distributed_sampler=False,
        enable_checkpointing=True,
    )
    part = loader_for(module.network, 2, seed=rank)
    trainer.fit(module, part, part, ckpt_path=checkpoint)
    # the loss that both see, of the weights that remain
    losses = [module.loss(batch).detach() for batch in part]
    return {
        "masks": pruning.masks,
        "history": [vars(step) for step in pruning.history],
        "final": {key: value.clone() for key, value in module.state_dict().items()},
        "loss": float(sum(losses) / len(losses)) * (1 + 3 * rank),
        "epochs": trainer.current_epoch,
        "random": torch.rand(()).item(),
    }


def main(folder: Path, rank: int) -> None:
    runs = {name: partial(run, name, rank, folder) for name in RUNS}
    runs["resumed"] = partial(run, "differing", rank, folder, folder / "differing epoch=5.ckpt")
    keep_results(folder, rank, runs)
