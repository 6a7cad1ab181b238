"""λ of each step: a number or one that is found in training, times the schedule's factor."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from lightning_psp.analysis.unchanged import buffers_and_random_numbers_kept
from lightning_psp.callback.auto_lam import AutoLam, Lam
from lightning_psp.callback.trainer_state import first_learning_rate, training_progress
from lightning_psp.callback.watch import Watch
from lightning_psp.gradient.norms import norm_of_mean
from lightning_psp.schedules import Schedule

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class Strength:
    """λ of the steps of one training."""

    def __init__(self) -> None:
        """The training has not begun."""
        self._auto = AutoLam()
        self._first_learning_rate: float | None = None
        self._factor = 1.0  # of the schedule, in the running step

    @property
    def has_measured(self) -> bool:
        """Whether a λ was found in training."""
        return self._auto.has_measured

    def at_full(self, lam: Lam) -> float:
        """λ without the schedule's factor."""
        return self._auto.lam if isinstance(lam, str) else lam

    def next(self, lam: Lam, schedule: Schedule, trainer: Trainer) -> float:
        """λ of the step that is about to start."""
        if self._first_learning_rate is None:
            self._first_learning_rate = first_learning_rate(trainer)
        self._factor = float(schedule.factor(training_progress(trainer, self._first_learning_rate)))
        if not 0.0 <= self._factor < math.inf:
            raise ValueError(f"Expected {schedule!r} to give a finite factor of at least 0 but got {self._factor}.")
        return self.at_full(lam) * self._factor

    def is_due(self, lam: Lam, trainer: Trainer) -> bool:
        """Whether λ is to be measured in the step that is about to start."""
        return isinstance(lam, str) and self._auto.is_due(trainer.global_step)

    def measure(self, watch: Watch, loss: Tensor, scale: float, trainer: Trainer, module: LightningModule) -> None:
        """Measures λ before a backward pass, and has the watch penalise with it.

        Args:
            watch: the watch of the running step.
            loss: the tensor whose `backward` is about to be called.
            scale: the factor by which the user's loss was multiplied to give it.
            trainer: the trainer.
            module: the user's module.

        Raises:
            RuntimeError: if the backward pass cannot be run more than once.
        """
        if not self._auto.is_due(trainer.global_step):  # of several backward passes of a step, not the first
            return
        parameters = [each for each in module.parameters() if each.requires_grad and not is_lazy(each)]
        norm = partial(norm_of_mean, parameters=parameters, processes=trainer.world_size)
        probe = self._auto.probe
        if loss.requires_grad:  # else the backward pass itself is an error
            try:
                # Activation checkpoints run a part of the network again.
                with buffers_and_random_numbers_kept(module):
                    of_loss, of_penalty = watch.measure(loss, probe, scale, parameters, norm)
            except NotImplementedError:
                raise
            except RuntimeError as error:
                raise RuntimeError(
                    "PSPCallback(lam='auto') takes the gradients of loss and penalty before the backward pass of every"
                    f" tenth step, which failed: {error}\nIf it does not fail with a number for `lam`, give one, such"
                    " as `find_lam` suggests."
                ) from error
            self._auto.add(trainer.global_step, of_loss, of_penalty / probe)
        watch.lam = self._auto.lam * self._factor

    def state(self) -> dict[str, Any]:
        """What a resumed training needs."""
        return {"first_learning_rate": self._first_learning_rate, "auto_lam": self._auto.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Takes up a training where a checkpoint left it."""
        self._first_learning_rate = state["first_learning_rate"]
        if "auto_lam" in state:  # not in a checkpoint of an earlier version
            self._auto.load(state["auto_lam"])
