"""What this package asks of Lightning's validation loop by names that are not public.

Where one is missing, :func:`missing_names` tells so before anything else here is called: there is no public way to
validate in the middle of a fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lightning_psp.lightnings.lightning_private import CONNECTOR

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

LOOP = "fit_loop.epoch_loop.val_loop"
OF_LOOP = ("_combined_loader", "_max_batches", "_last_val_dl_reload_epoch", "_trainer_fn", "_stage", "inference_mode")
RESULTS = "_results"
NAME_OF_RESULT = "_forked_name"
LAST_TIME = "_last_val_time"  # of newer versions, which can validate by the clock


def missing_names(trainer: Trainer) -> list[str]:
    """Names that this version of Lightning lacks of those that the other functions use; empty where all are there."""
    missing = [f"Trainer.{name}" for name in (CONNECTOR, LOOP) if not _has(trainer, name)]
    return missing or [f"_EvaluationLoop.{name}" for name in OF_LOOP if not _has(_loop(trainer), name)]


def validation_loaders(trainer: Trainer) -> list[Any]:
    """The dataloaders that the trainer validates with while it fits."""
    return list(_loop(trainer)._combined_loader.flattened)


def logged_so_far(trainer: Trainer) -> set[tuple[str, str]]:
    """What has been logged in the validation under way: hook and name, that in ``trainer.callback_metrics``.

    Nothing where a name is missing.
    """
    return {(hook, name) for hook, name, _ in _logged(trainer)}


def logged_in_hook(trainer: Trainer, hook: str, dataloader: int | None = None) -> set[tuple[str, str]]:
    """The same for one hook; of a batch's hook what was logged with the batches of this batch's dataloader.

    Nothing where a name is missing.
    """
    return {
        (within, name)
        for within, name, of_dataloader in _logged(trainer)
        if within == hook and of_dataloader in (None, dataloader)
    }


def _logged(trainer: Trainer) -> Iterator[tuple[str, str, int | None]]:
    if not _has(trainer, f"{RESULTS}.{NAME_OF_RESULT}"):
        return
    results: Any = getattr(trainer, RESULTS)
    for result in results.values():
        if result.meta.on_epoch and not result.has_reset:  # else it is of an earlier validation
            for name in getattr(results, NAME_OF_RESULT)(result, on_step=False):
                yield result.meta.fx.partition(".")[0], name, result.meta.dataloader_idx


@contextmanager
def further_validations(trainer: Trainer) -> Iterator[Callable[[], None]]:
    """Gives a function that runs the trainer's validation once more, by a loop with progress and results of its own.

    After a call that loop is the trainer's, and ``trainer.callback_metrics`` are what it logged; afterwards the trainer
    has its own loop and results.
    """
    epoch_loop: Any = trainer.fit_loop.epoch_loop
    loop: Any = _loop(trainer)
    connector, last_time = getattr(trainer, CONNECTOR), getattr(trainer, LAST_TIME, None)

    def run() -> None:
        epoch_loop.val_loop = own = type(loop)(
            trainer, loop._trainer_fn, loop._stage, verbose=False, inference_mode=loop.inference_mode
        )
        own._combined_loader, own._max_batches = loop._combined_loader, loop._max_batches
        own._last_val_dl_reload_epoch = loop._last_val_dl_reload_epoch
        setattr(trainer, CONNECTOR, type(connector)(trainer))
        own.run()

    try:
        yield run
    finally:
        epoch_loop.val_loop = loop
        setattr(trainer, CONNECTOR, connector)
        if last_time is not None:
            setattr(trainer, LAST_TIME, last_time)


def _loop(trainer: Trainer) -> Any:
    return trainer.fit_loop.epoch_loop.val_loop


def _has(thing: Any, path: str) -> bool:
    for name in path.split("."):
        if not hasattr(thing, name):
            return False
        thing = getattr(thing, name)
    return True
