"""The weights of a training that is being pruned, at each sparsity that it reached."""

import copy
import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from lightning_psp.analysis import constant_units
from lightning_psp.pruning import LobsterPruning, MaskedTraining, sparsity
from support.classifier import Classifier, evaluate


def levels_so_far(checkpoint: Path) -> list[dict[str, Any]]:
    """Read the levels that a training had finished when its checkpoint was written."""
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")["callbacks"]["LevelRecorder"]
    return state["levels"]


class LevelRecorder(Callback):
    """Keeps, for each sparsity, the weights with the lowest validation loss, and measures them on the test set.

    It must stand before the pruning callback in the Trainer's list, to see the weights before they are pruned further.

    Args:
        folder: Where the weights and masks are written, one file a level: ``level00.pt`` is the dense network's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.levels: list[dict[str, Any]] = []
        self._pruning: LobsterPruning | MaskedTraining | None = None
        self._best: dict[str, Any] = {"loss": math.inf}

    def watch(self, pruning: LobsterPruning | MaskedTraining) -> None:
        """Name the callback that prunes."""
        self._pruning = pruning

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the weights if there are none better at their sparsity."""
        loss = trainer.callback_metrics["val_loss"].item()
        share = sparsity(pl_module).network
        if "sparsity" in self._best and self._best["sparsity"] != share:
            self._finish(trainer.lightning_module, trainer.datamodule)
        if loss < self._best["loss"]:
            self._best = {
                "loss": loss,
                "sparsity": share,
                "epoch": trainer.current_epoch,
                "weights": copy.deepcopy(pl_module.state_dict()),
                "masks": copy.deepcopy(dict(self._pruning.masks)),
            }

    def measure(self, module: LightningModule, data: LightningDataModule) -> dict[str, Any]:
        """Finish the last level.

        Returns:
            ``levels``: a record each, in the order of the training.
        """
        self._finish(module, data)
        return {"levels": self.levels}

    def state_dict(self) -> dict[str, Any]:
        """All levels so far, with the best weights of the present one."""
        return {"levels": self.levels, "best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a training where a checkpoint left it."""
        self.levels, self._best = state_dict["levels"], state_dict["best"]

    def _finish(self, module: Classifier, data: LightningDataModule) -> None:
        best, self._best = self._best, {"loss": math.inf}
        self.folder.mkdir(parents=True, exist_ok=True)
        stored = {"weights": best["weights"], "masks": best["masks"]}
        torch.save(stored, self.folder / f"level{len(self.levels):02}.pt")
        network = copy.deepcopy(module.network)
        network.load_state_dict({name.removeprefix("network."): value for name, value in best["weights"].items()})
        batches = [data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader()]
        constant = constant_units(network, batches)
        self.levels.append(
            {
                "sparsity": best["sparsity"],
                "epoch": best["epoch"],
                "val_loss": best["loss"],
                **evaluate(network, batches),
                "off": {layer: len(units.off) for layer, units in constant.layers.items()},
                "on": {layer: len(units.on) for layer, units in constant.layers.items()},
                "units": {layer: units.units for layer, units in constant.layers.items()},
            }
        )
