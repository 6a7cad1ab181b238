"""What is measured over epochs, and logged at their end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from lightning_psp.callback.entropy_measure import EntropyMeasure
from lightning_psp.callback.layer_metrics import LayerMetrics, MeanSquares
from lightning_psp.callback.step import Step
from lightning_psp.metrics import PSPEntropy

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

Stage: TypeAlias = Literal["train", "val", "test"]


class Epoch:
    """What is measured over one epoch of training, validation or test.

    Args:
        entropies: the metrics of PSP-entropy of each layer by order, filled elsewhere.
    """

    def __init__(self, entropies: Mapping[str, Mapping[int, PSPEntropy]]) -> None:
        self.mean_squares = MeanSquares()
        self._entropies = entropies

    def layers(self) -> dict[str, LayerMetrics]:
        """The metrics of each layer."""
        squares = self.mean_squares.metrics
        return {layer: LayerMetrics(metric, self._entropies.get(layer, {})) for layer, metric in squares.items()}

    def finish(self) -> None:
        """Moves all to the processor's memory, for those who read it later."""
        for layer in self.layers().values():
            for metric in (layer.mean_square, *layer.entropies.values()):
                metric.cpu()


class Epochs:
    """The running or last epoch of each stage.

    Args:
        entropy: measures the entropies of evaluations.
        logs_layers: whether the values of each layer are logged.
    """

    def __init__(self, entropy: EntropyMeasure, logs_layers: bool) -> None:
        self._entropy = entropy
        self._logs_layers = logs_layers
        self._epochs: dict[Stage, Epoch] = {"train": Epoch({}), "val": Epoch({}), "test": Epoch({})}
        self._number: int | None = None  # of the epoch of training, None before its first step

    def metrics(self) -> dict[str, dict[str, LayerMetrics]]:
        """The metrics of each layer by stage."""
        return {stage: epoch.layers() for stage, epoch in self._epochs.items()}

    def layers(self, stage: Stage) -> list[str]:
        """The layers that an epoch has measured."""
        return [*self._epochs[stage].mean_squares.metrics]

    def start_training(self) -> None:
        """Starts an epoch of training."""
        self._epochs["train"] = Epoch({})
        self._number = None

    def start_step(self, trainer: Trainer) -> None:
        """Starts an epoch of training with its first step."""
        # Some versions of Lightning announce an epoch once more where they resume it, others not even the next one. The
        # first batch may be None, which no step gets.
        if trainer.fit_loop.batch_idx == 0 or self._number not in (None, trainer.current_epoch):
            self.start_training()
        self._number = trainer.current_epoch

    def start_evaluation(self, trainer: Trainer, stage: Stage) -> None:
        """Starts an epoch of evaluation."""
        self._epochs[stage] = Epoch(self._entropy.start(trainer))

    def add(self, stage: Stage, step: Step) -> None:
        """Takes in a step."""
        self._epochs[stage].mean_squares.add(step.sums)
        if stage != "train":
            self._entropy.end_batch(step)

    def finish(self, trainer: Trainer, module: LightningModule, stage: Stage) -> dict[str, float]:
        """Logs what an epoch has measured in all processes, and returns ⟨z²⟩ of each layer."""
        epoch = self._epochs[stage]
        if trainer.world_size > 1:
            epoch.mean_squares.synchronise(trainer.world_size)
        layers = epoch.mean_squares.means()
        entropies = {}
        if stage != "train":
            entropies = self._entropy.values(trainer, stage, layers, self._logs_layers)
            self._entropy.release()
        epoch.finish()
        if trainer.barebones or not layers:
            return layers
        values = {f"psp/z2_{stage}": sum(layers.values()) / len(layers)}
        if self._logs_layers:
            values.update({f"psp_z2_{stage}/{layer}": mean for layer, mean in layers.items()})
        values.update(entropies)
        # The values of all processes are equal already; Lightning warns of what it does not synchronise itself.
        module.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=trainer.world_size > 1)
        return layers

    def state(self) -> dict[str, Any]:
        """The number of the epoch of training, and its sums as tensors."""
        return {"train_epoch": self._number, "train_sums": self._epochs["train"].mean_squares.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes up the epoch of training that :meth:`state` was made of."""
        self.start_training()
        self._number = state.get("train_epoch")  # not in a checkpoint of an earlier version
        self._epochs["train"].mean_squares.load(state["train_sums"])
