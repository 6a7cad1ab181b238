"""The factor by which a trainer multiplied a loss before its backward pass, told without waiting for an accelerator."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_psp.gradient.loss_scale import LossScale

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

_EVERY = 100  # backward passes


class LossScales:
    """Tells the factor of one backward pass after another.

    Loss scaling for half precision keeps its scale on the accelerator, where a step that read it would wait. It is read
    in every hundredth backward pass; in between, what it changed by is a tensor that goes into the penalty's gradient.
    The two are apart because half precision has no room for the whole scale; a change that is a power of two loses
    nothing.
    """

    def __init__(self) -> None:
        self._passes = 0
        self._read = 1.0

    def of_pass(self, trainer: Trainer, module: LightningModule, loss: Tensor, *, reads: bool) -> LossScale:
        """The factor of the backward pass that is about to start.

        Automatic optimisation divides the loss by the number of accumulated batches, manual optimisation does not.

        Args:
            trainer: the trainer.
            module: the user's module.
            loss: the tensor whose `backward` is about to be called.
            reads: whether a number is needed, for which the step may wait.
        """
        share = 1.0 / trainer.accumulate_grad_batches if module.automatic_optimization else 1.0
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is None:
            return LossScale(share)
        is_due = self._passes % _EVERY == 0
        self._passes += 1
        if is_due or reads or loss.is_cpu:
            scale = float(scaler.get_scale())
            self._read = scale or 1.0
            # A scale that was halved down to 0 makes every step one that is skipped, as NaN does.
            return LossScale(share * scale or math.nan)
        one = torch.ones((), dtype=torch.float32, device=loss.device)
        return LossScale(share * self._read, scaler.scale(one) / self._read)
