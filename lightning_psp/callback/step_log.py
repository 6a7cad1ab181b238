"""The values of a training step: in `trainer.callback_metrics` in every step, in the loggers when these are due."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_psp.callback.layer_metrics import mean_over_layers
from lightning_psp.callback.step import Step
from lightning_psp.functional.totals import Total
from lightning_psp.lightnings.lightning_private import (
    accumulates,
    callback_values,
    number_of_row,
    put_stand_in,
    remove_stand_in,
    row_writer,
    stand_in,
)

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

# What is logged in every training step: λ, the penalty, its share of the loss, ⟨z²⟩ of the batch.
STEP_VALUES = ("psp/lam", "psp/penalty", "psp/penalty_share", "psp/z2")


def step_values(step: Step, has_entropy_term: bool) -> dict[str, Total]:
    """What to log of a training step; nothing where it has shown no potential."""
    if not step.sums:
        return {}
    found = (step.lam, step.penalty, step.penalty_share, mean_over_layers(step.sums))
    values = dict(zip(STEP_VALUES, found, strict=True))
    if has_entropy_term:
        values["psp/entropy_term"] = step.entropy_term
    return values


def is_logging_step(trainer: Trainer) -> bool:
    """Whether loggers are due in this training step."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    is_due = every > 0 and (number_of_row(trainer) + 1) % every == 0
    return is_due or trainer.should_stop or bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def log_step(trainer: Trainer, module: LightningModule, values: dict[str, Total]) -> None:
    """Puts the values of a training step into `trainer.callback_metrics`, and into the loggers' next row if one is due.

    A `LightningModule.log` of its own for each value would take longer than a small model's step.

    Args:
        trainer: the trainer; with several processes, each of them has to call this in every step.
        module: the user's module.
        values: the values of this process's step, none if no potential was seen in it. Loggers get their mean over the
            processes that have some.
    """
    tensors = {key: value.detach() for key, value in values.items() if isinstance(value, Tensor)}
    numbers = {key: value for key, value in values.items() if not isinstance(value, Tensor)}
    if numbers:
        tensors.update(zip(numbers, torch.tensor([*numbers.values()], dtype=torch.float64).unbind(), strict=True))
    callback_values(trainer).update(tensors)
    if not is_logging_step(trainer):
        return
    if module.automatic_optimization and accumulates(trainer):
        return
    if trainer.world_size > 1:
        tensors = _mean_over_processes(trainer, tensors)
    if tensors:
        trainer.logged_metrics.update(tensors)
        _add_to_row(trainer, tensors)


def _mean_over_processes(trainer: Trainer, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean over the processes that have these values; a process may have none."""
    device = trainer.strategy.root_device
    own = torch.zeros(len(STEP_VALUES) + 1, dtype=torch.float64, device=device)
    if tensors:
        own[:-1] = torch.stack([tensors[key].to(device, torch.float64) for key in STEP_VALUES])
        own[-1] = 1.0
    torch.distributed.all_reduce(own)  # the strategy's own would wait at a barrier before
    *totals, number = own.unbind()
    return {key: total / number for key, total in zip(STEP_VALUES, totals, strict=True)} if number else {}


# --- the loggers' row ------------------------------------------------------------------------------------------------


class _Row:
    """Stands for what writes rows until it has written that of the running step, to which it adds values."""

    def __init__(self, trainer: Trainer, values: dict[str, Tensor]) -> None:
        self.values = values
        self.step = number_of_row(trainer)
        self._loggers = trainer.loggers
        self._epoch = trainer.current_epoch
        self._trainer = trainer
        self._write = row_writer(trainer)

    def wait(self) -> None:
        """Waits for the row, or writes one if none will come."""
        if self._write is None:
            self._write_values()
        else:
            put_stand_in(self._trainer, self)

    def __call__(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Writes a row. One whose step is given is another callback's."""
        assert self._write is not None
        if step is None:
            remove_stand_in(self._trainer, self)
            metrics = {**metrics, **self.values}
        self._write(metrics, step=step)

    def write_alone(self) -> None:
        """Waits no longer and writes the values as a row of their own."""
        remove_stand_in(self._trainer, self)
        self._write_values()

    def _write_values(self) -> None:
        row = {**{key: float(value) for key, value in self.values.items()}, "epoch": self._epoch}
        for logger in self._loggers:
            logger.log_metrics(row, step=self.step)


def _add_to_row(trainer: Trainer, values: dict[str, Tensor]) -> None:
    """Adds values to the row that Lightning writes at the end of the running training step."""
    row = _waiting(trainer)
    if row is not None and row.step == number_of_row(trainer):
        row.values.update(values)
        return
    finish_row(trainer)
    if trainer.loggers:
        _Row(trainer, values).wait()


def finish_row(trainer: Trainer) -> None:
    """Writes the values whose row did not come, because a step crashed or Lightning writes it by another name."""
    row = _waiting(trainer)
    if row is not None:
        row.write_alone()


def _waiting(trainer: Trainer) -> _Row | None:
    row = stand_in(trainer)
    return row if isinstance(row, _Row) else None
