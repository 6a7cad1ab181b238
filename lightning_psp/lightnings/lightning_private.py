"""What this package asks of Lightning by names that are not public, and what it does with a Lightning without them.

Each function says what it gives; where a name is missing, public names give it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch import nn

# Writes metrics to all loggers, with a step or with that of the row that is due.
Writer: TypeAlias = Callable[..., None]

BATCHES_THAT_STEPPED = "_batches_that_stepped"
SHOULD_ACCUMULATE = "_should_accumulate"
STATE_OF_PARAMETERS = "_param_requires_grad_state"
CONNECTOR, WRITE, CALLBACK_VALUES = "_logger_connector", "log_metrics", "_callback_metrics"


def number_of_row(trainer: Trainer) -> int:
    """The step by which Lightning numbers a training batch's row: the batches before it that ended in optimiser steps.

    Without the name, the optimiser's steps before the last: the same with one optimiser.
    """
    number: int | None = getattr(trainer.fit_loop.epoch_loop, BATCHES_THAT_STEPPED, None)
    return max(0, trainer.global_step - 1) if number is None else number


def accumulates(trainer: Trainer) -> bool:
    """Whether automatic optimisation adds up the gradient of the running batch with those of further ones.

    Without the name, what the trainer was asked for: so many batches, or fewer at the end of an epoch.
    """
    tell: Callable[[], bool] | None = getattr(trainer.fit_loop, SHOULD_ACCUMULATE, None)
    if tell is not None:
        return tell()
    is_full = (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0
    return not (is_full or trainer.is_last_batch)


def toggled_off(module: LightningModule) -> set[nn.Parameter]:
    """The parameters that `toggle_optimizer` has kept from asking for a gradient for a while.

    Without the name, none.
    """
    before: dict[nn.Parameter, bool] = getattr(module, STATE_OF_PARAMETERS, {})
    return {parameter for parameter, asked in before.items() if asked}


def callback_values(trainer: Trainer) -> dict[str, Any]:
    """The values of `trainer.callback_metrics`, for others to be added, without a search for new ones of the user's.

    Without the name, with that search.
    """
    values: dict[str, Any] | None = getattr(getattr(trainer, CONNECTOR, None), CALLBACK_VALUES, None)
    return trainer.callback_metrics if values is None else values


def row_writer(trainer: Trainer) -> Writer | None:
    """What writes the row of a training batch to the loggers; None without the names."""
    writer: Writer | None = getattr(getattr(trainer, CONNECTOR, None), WRITE, None)
    return writer


def stand_in(trainer: Trainer) -> Any:
    """What :func:`put_stand_in` has put in the place of the writer; None if nothing."""
    connector = getattr(trainer, CONNECTOR, None)
    return None if connector is None else vars(connector).get(WRITE)


def put_stand_in(trainer: Trainer, writer: Writer) -> None:
    """Has something else called in the place of the writer; only where there is a writer."""
    vars(getattr(trainer, CONNECTOR))[WRITE] = writer


def remove_stand_in(trainer: Trainer, writer: Writer) -> None:
    """Has the writer called again, where that is what stands in its place."""
    if stand_in(trainer) is writer:
        del vars(getattr(trainer, CONNECTOR))[WRITE]
