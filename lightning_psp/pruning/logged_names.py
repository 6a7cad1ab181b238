"""Telling what callbacks log in a validation from what the LightningModule logs, which alone can be validated again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_psp.lightnings.validation_private import logged_in_hook, logged_so_far
from lightning_psp.pruning.holding import HoldsMasks

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class KnowsWhoLogs(HoldsMasks):
    """A callback that holds masks, and knows which values of a validation callbacks alone have logged.

    Lightning calls a hook of all callbacks before that of the LightningModule, and this callback behind all others but
    checkpoint callbacks. So what a hook has logged when this callback is called is the callbacks': of the hooks of
    batches, in the first batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self._of_callbacks: set[tuple[str, str]] = set()
        self._metrics_before: dict[str, Any] = {}

    def values_of_module(self, trainer: Trainer) -> dict[str, Any]:
        """What the validation that has just ended has logged, without what callbacks alone have."""
        of_module = {name for _, name in logged_so_far(trainer) - self._of_callbacks}
        of_callbacks = {name for _, name in self._of_callbacks} - of_module
        # What the training or an earlier validation has logged is still there, as the same objects.
        before, self._metrics_before = self._metrics_before, {}
        return {
            name: value
            for name, value in trainer.callback_metrics.items()
            if value is not before.get(name) and name not in of_callbacks
        }

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins anew."""
        super().on_validation_start(trainer, pl_module)
        self._metrics_before = dict(trainer.callback_metrics)
        self._of_callbacks = logged_in_hook(trainer, "on_validation_start")

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes what callbacks have logged."""
        self._of_callbacks |= logged_in_hook(trainer, "on_validation_epoch_start")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Notes what callbacks have logged."""
        super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        if batch_idx == 0:
            self._of_callbacks |= logged_in_hook(trainer, "on_validation_batch_start", dataloader_idx)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Notes what callbacks have logged."""
        if batch_idx == 0:
            self._of_callbacks |= logged_in_hook(trainer, "on_validation_batch_end", dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes what callbacks have logged."""
        self._of_callbacks |= logged_in_hook(trainer, "on_validation_epoch_end")
