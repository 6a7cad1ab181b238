"""The value that a search for thresholds goes by, and whether it can: it has to be a loss of the weights tried out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_psp.pruning.bound_masks import BoundMask

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

# This package's callbacks log these, and are silent while a search validates.
_OF_CALLBACKS = ("psp/", "psp_", "pruning")
# A loss that falls by this share when weights are set to 0 may be none.
_SUSPICIOUS_FALL = 0.1
# The same weights have the same loss but for rounding, and but for less than this part of what pruning may cost.
_ROUNDING, _OF_TOLERANCE = 1e-3, 0.1


def monitored(monitor: str, trainer: Trainer, metrics: Mapping[str, Any]) -> float:
    """The monitored value among those of a validation, its mean over processes.

    Raises:
        ValueError: if it was not logged.
    """
    if monitor not in metrics:
        names = ", ".join(name for name in metrics if not name.startswith(_OF_CALLBACKS)) or "none"
        raise ValueError(
            f"LobsterPruning(monitor={monitor!r}) needs a value of this name that the LightningModule itself, and no"
            f" callback, logs in its validation, but the names are: {names}. Log it with `self.log({monitor!r}, …)` in"
            " `validation_step`."
        )
    value = float(metrics[monitor])
    if trainer.world_size == 1:
        return value
    of_all = torch.tensor(value, dtype=torch.float64, device=trainer.strategy.root_device)
    return float(trainer.strategy.reduce(of_all, reduce_op="mean"))


def check_still_pruned(bound: Iterable[BoundMask]) -> None:
    """Raises an error where other weights have taken the place of those that are tried out.

    Raises:
        RuntimeError: if a weight is not 0 that is to be.
    """
    for each in bound:
        if each.weight.value()[each.goes].any():
            raise RuntimeError(
                f"LobsterPruning cannot try out what can be pruned: {each.weight.names[0]!r} gets other weights when a"
                " validation starts, such as averages of them, from a hook of the LightningModule or its optimiser."
                " Have a callback do that (Lightning's `WeightAveraging`), or validate the weights that are trained."
            )


def refuse_constant(monitor: str, loss: float) -> None:
    """Raises an error for a value that is the same without any weight.

    Raises:
        ValueError: in any case.
    """
    raise ValueError(
        f"LobsterPruning(monitor={monitor!r}) needs a loss of the weights that are trained, but it is {loss:.6g} with"
        " all prunable weights at 0, too. Where `validation_step` looks at other weights, such as averages, log the"
        " loss of the module's own under another name."
    )


def warn_of_chance(monitor: str, before: float, now: float, tolerance: float) -> None:
    """Warns where validating the same weights again gives another value."""
    if abs(now - before) > max(_ROUNDING, _OF_TOLERANCE * tolerance) * abs(before):
        rank_zero_warn(
            f"LobsterPruning: {monitor!r} was {before:.6g} for the best weights, and is {now:.6g} when validated once"
            " more. The search goes by the second value. They differ where the validation draws random numbers,"
            " where a callback has averages of weights validated, which the search does without, or where a validation"
            " adds to something that is not reset when the next one starts: then what the search finds is wrong. Lists,"
            " dicts, arrays, tensors and metrics of the LightningModule are reset, other objects are not."
        )


def warn_of_fall(monitor: str, before: float, after: float) -> None:
    """Warns where the monitored value is much lower without weights than with them."""
    if after < before - _SUSPICIOUS_FALL * abs(before):
        rank_zero_warn(
            f"LobsterPruning: {monitor!r} fell from {before:.4g} to {after:.4g} when weights were set to 0. It is taken"
            " for a loss, the smaller the better: in place of an accuracy monitor a loss or the error. If it is a loss,"
            " the network does worse on the validation data than a smaller one: it has learned nothing yet, or too much"
            " by heart."
        )
