"""Telling what callbacks log in a validation from what the LightningModule logs, which alone can be validated again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_psp.lightnings.validation_private import logged_in_hook, logged_so_far

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class LoggedNames:
    """Knows which values of a validation callbacks alone have logged.

    Lightning calls a hook of all callbacks before that of the LightningModule. What a hook has logged when it is called
    on the last of them but checkpoint callbacks, which tells of it here, is the callbacks': of the hooks of batches, in
    the first batch.
    """

    def __init__(self) -> None:
        self._of_callbacks: set[tuple[str, str]] = set()
        self._metrics_before: dict[str, Any] = {}

    def start(self, trainer: Trainer) -> None:
        """A validation starts."""
        self._metrics_before = dict(trainer.callback_metrics)
        self._of_callbacks = logged_in_hook(trainer, "on_validation_start")

    def note(self, trainer: Trainer, hook: str) -> None:
        """A hook is called on the last callback."""
        self._of_callbacks |= logged_in_hook(trainer, hook)

    def note_batch(self, trainer: Trainer, hook: str, batch: int, dataloader: int) -> None:
        """The same of a hook that is called for each batch."""
        if batch == 0:
            self._of_callbacks |= logged_in_hook(trainer, hook, dataloader)

    def of_module(self, trainer: Trainer) -> dict[str, Any]:
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
