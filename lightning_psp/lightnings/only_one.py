"""A callback of which a trainer takes one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_psp.lightnings.any_callback import AnyCallback

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class OnlyOne(AnyCallback):
    """A callback of which a trainer takes one: what derives from it refuses a second one in its `setup`.

    Lightning compares the keys of callbacks when a Trainer is made, and its error names no remedy.
    """

    _was_set_up = False

    @property
    def state_key(self) -> str:
        """The name of the class, as in checkpoints; no other's until a trainer has set the callback up."""
        name = type(self).__qualname__
        return name if self._was_set_up else f"{name} {id(self)}"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the key that checkpoints have."""
        self._was_set_up = True
