"""What the callback asks of a trainer: its progress, and what it cannot be penalised with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from lightning_psp.callback.auto_lam import Lam
from lightning_psp.lightnings import AnyCallback
from lightning_psp.pruning.prunable import is_sharded
from lightning_psp.schedules import TrainingProgress

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


def refuse_training(trainer: Trainer, module: LightningModule, lam: Lam, entropy_weight: float) -> None:
    """Raises an error where a term of the gradient, or λ, cannot be had in a training.

    Raises:
        NotImplementedError: then.
    """
    if entropy_weight != 0.0 and trainer.world_size > 1:
        raise NotImplementedError(
            "PSPCallback(entropy_weight=…) needs the states of each class over the whole batch, of which each of"
            f" {trainer.world_size} processes sees a part. Train in one process, or use entropy_weight=0."
        )
    if lam != 0 and _splits_layers(trainer):
        refuse_split_units(trainer)
    if lam == "auto":
        _refuse_what_cannot_be_measured(trainer, module)


# By name, for neither Lightning is imported because of the other; classes derived from these are meant, too.
_SHARDING = ("FSDPStrategy", "XLAFSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")


def _refuse_what_cannot_be_measured(trainer: Trainer, module: LightningModule) -> None:
    """Raises an error where the gradients of loss and penalty cannot be taken before the backward pass."""
    reason = ""
    if not module.automatic_optimization:
        reason = "one loss of which all gradients come, and manual optimisation may have several"
    elif any(kind.__name__ in _SHARDING for kind in type(trainer.strategy).__mro__):
        reason = f"whole parameters in each process, and {type(trainer.strategy).__name__} shares them out"
    elif any(is_sharded(parameter) for parameter in module.parameters()):
        reason = "whole parameters in each process, and these are sharded"
    elif getattr(trainer.strategy.model, "static_graph", False):
        reason = "passes through the graph before the first backward pass, which DDP with static_graph=True waits for"
    if reason:
        raise NotImplementedError(
            f"PSPCallback(lam='auto') needs {reason}. Give a number for `lam`, such as `find_lam` suggests."
        )


def refuse_split_units(trainer: Trainer) -> NoReturn:
    """Raises an error where each of several processes sees a part of a layer's units."""
    raise NotImplementedError(
        "PSPCallback cannot penalise layers whose units are split over processes (tensor parallelism), for each"
        f" process sees a part of a layer. Use ModelParallelStrategy(data_parallel_size={trainer.world_size},"
        " tensor_parallel_size=1)."
    )


def _splits_layers(trainer: Trainer) -> bool:
    """Whether a process may hold a part of a layer's units."""
    mesh = getattr(trainer.strategy, "device_mesh", None)  # a ModelParallelStrategy of either Lightning has one
    dimension = "tensor_parallel"
    return mesh is not None and dimension in (mesh.mesh_dim_names or ()) and mesh[dimension].size() > 1


def leaving(trainer: Trainer, callback: AnyCallback) -> Callable[[], bool]:
    """Tells whether a callback that is among the trainer's now is so no longer."""
    was_there = has_callback(trainer, callback)  # or another callback hands the trainer's hooks on to this one
    return lambda: was_there and not has_callback(trainer, callback)


def has_callback(trainer: Trainer, callback: AnyCallback) -> bool:
    """Whether this very callback is among the trainer's."""
    return any(each is callback for each in trainer.callbacks)  # type: ignore[attr-defined]


def refuse_second_callback(trainer: Trainer, callback: AnyCallback, kind: type[AnyCallback]) -> None:
    """Raises an error where another callback of a kind, or derived from it, would penalise everything again."""
    callbacks: list[AnyCallback] = trainer.callbacks  # type: ignore[attr-defined]
    if any(each is not callback and isinstance(each, kind) for each in callbacks):
        raise RuntimeError(
            f"A Trainer takes one {kind.__name__}, but a second one was added to it. `layer_lam` gives layers"
            " different strengths."
        )


def learning_rate(trainer: Trainer) -> float:
    """Learning rate of the first parameter group of the first optimiser; 0 without an optimiser."""
    return float(_first_group(trainer)["lr"])


def first_learning_rate(trainer: Trainer) -> float:
    """The same before any scheduler changed it."""
    group = _first_group(trainer)
    return float(group.get("initial_lr", group["lr"]))


def _first_group(trainer: Trainer) -> Mapping[str, Any]:
    # What Lightning puts in the place of an optimiser where a module configures none has no parameter group.
    groups = trainer.optimizers[0].param_groups if trainer.optimizers else []
    return groups[0] if groups else {"lr": 0.0}


def training_progress(trainer: Trainer, first_rate: float) -> TrainingProgress:
    """How far the training is that `trainer` runs."""
    shares = []
    if trainer.max_steps > 0:
        shares.append(trainer.global_step / trainer.max_steps)
    batches = trainer.num_training_batches
    if trainer.max_epochs is not None and trainer.max_epochs > 0 and math.isfinite(batches):
        epochs = trainer.current_epoch + trainer.fit_loop.batch_idx / batches
        shares.append(epochs / trainer.max_epochs)
    # Training ends at whichever limit comes first.
    fraction = min(1.0, max(shares)) if shares else None
    return TrainingProgress(trainer.global_step, fraction, learning_rate(trainer), first_rate)
