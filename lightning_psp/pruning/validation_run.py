"""Validating in the middle of a fit, with nothing to see of it afterwards."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from lightning_psp.functional.loader_generators import loader_generators
from lightning_psp.lightnings.any_callback import LIGHTNINGS, AnyCallback
from lightning_psp.lightnings.validation_private import further_validations, missing_names, validation_loaders
from lightning_psp.pruning.module_attributes import ModuleAttributes

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.strategies import Strategy


def check_lightning(trainer: Trainer) -> None:
    """Raises an error where this version of Lightning lacks what :func:`validations_without_trace` uses."""
    missing = missing_names(trainer)
    if missing:
        package = type(trainer).__module__.partition(".")[0]
        raise NotImplementedError(
            f"LobsterPruning cannot validate by itself with version {sys.modules[package].__version__} of {package},"
            f" which has no {', '.join(missing)}. Use a version from 2.4 to 2.6."
        )


@contextmanager
def validations_without_trace(
    trainer: Trainer, pl_module: LightningModule, before: ModuleAttributes
) -> Iterator[Callable[[Callable[[], None]], dict[str, float]]]:
    """Gives a function that runs the trainer's validation once more and returns what it logged.

    It is given what is to be called right before the first `validation_step`, when all hooks that come before have run.

    Every run is one of Lightning's own validation loop over the trainer's validation data: the LightningModule's hooks
    are called, limits and several dataloaders are respected, values are synchronised as the user asked for. All runs
    draw the same random numbers. Callbacks are not called and loggers write nothing, though they are there to be looked
    at. Afterwards, metrics and progress of the trainer, learning rates and their schedulers, random states, modes and
    attributes of the modules are as they were; parameters and buffers are the caller's business. To be used within a
    validation (`on_validation_end`).

    Args:
        trainer: the trainer that fits.
        pl_module: its module.
        before: the module's attributes as they were when the validation began, with which each run begins.
    """
    now, containers = ModuleAttributes(pl_module), before.containers_as_now()
    try:
        with further_validations(trainer) as validate, _muted(trainer):

            def run(at_first_step: Callable[[], None]) -> dict[str, float]:
                before.restore()
                with (
                    _random_states_kept(trainer),
                    _course_kept(trainer),
                    _called_once(trainer.strategy, at_first_step),
                ):
                    validate()
                return {name: float(value) for name, value in trainer.callback_metrics.items()}

            yield run
    finally:
        containers()
        now.restore()


@contextmanager
def _called_once(strategy: Strategy, before_step: Callable[[], None]) -> Iterator[None]:
    """Has a function called before the next step of validation."""
    own, step = vars(strategy), strategy.validation_step
    former = {name: own[name] for name in ("validation_step",) if name in own}

    def call_both(*args: Any, **kwargs: Any) -> Any:
        give_back()
        before_step()
        return step(*args, **kwargs)

    def give_back() -> None:
        if own.get("validation_step") is call_both:
            del own["validation_step"]
            own.update(former)

    own["validation_step"] = call_both
    try:
        yield
    finally:
        give_back()


@contextmanager
def _random_states_kept(trainer: Trainer) -> Iterator[None]:
    """Gives the random generators, global and of the validation data, the states back that they had."""
    states = [(generator, generator.get_state()) for generator in loader_generators(validation_loaders(trainer))]
    of_python = random.getstate()
    numpy: Any = sys.modules.get("numpy")
    of_numpy = None if numpy is None else numpy.random.get_state()
    device = trainer.strategy.root_device
    devices, kind = ((device,), device.type) if device.type in ("cuda", "xpu") else ((), "cuda")
    with torch.random.fork_rng(devices, device_type=kind):
        try:
            yield
        finally:
            for generator, state in states:
                generator.set_state(state)
            random.setstate(of_python)
            if numpy is not None:
                numpy.random.set_state(of_numpy)


@contextmanager
def _course_kept(trainer: Trainer) -> Iterator[None]:
    """Gives learning rates and their schedulers the states back that they had, and the training its wish to stop.

    Hooks of the LightningModule may change them when a validation has ended.
    """
    should_stop = trainer.should_stop
    schedulers = [(each.scheduler, copy.deepcopy(each.scheduler.state_dict())) for each in trainer.lr_scheduler_configs]
    groups = [
        (group, copy.deepcopy({name: value for name, value in group.items() if name != "params"}))
        for optimizer in trainer.optimizers
        for group in optimizer.param_groups
    ]
    try:
        yield
    finally:
        trainer.should_stop = should_stop
        for scheduler, state in schedulers:
            scheduler.load_state_dict(state)
        for group, kept in groups:
            for name, value in kept.items():
                if isinstance(value, torch.Tensor):
                    group[name].copy_(value)  # compiled code may read it where it is
                else:
                    group[name] = value


class _Silence:
    """Takes whatever is done with the object that a logger writes to."""

    def __call__(self, *args: Any, **kwargs: Any) -> _Silence:
        return self

    def __getattr__(self, name: str) -> _Silence:
        return self

    def __getitem__(self, key: Any) -> _Silence:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        """Takes it."""


_SILENCE = _Silence()


@contextmanager
def _muted(trainer: Trainer) -> Iterator[None]:
    """Callbacks do nothing when they are called, and loggers write nothing; they are the same objects."""
    callbacks: list[AnyCallback] = trainer.callbacks  # type: ignore[attr-defined]
    classes = [sys.modules[name].Callback for name in LIGHTNINGS if name in sys.modules]
    hooks = {name for each in classes for name in dir(each) if name.startswith("on_")}
    silenced: list[tuple[Any, set[str]]] = [(callback, hooks) for callback in callbacks]
    silenced += [(logger, _writing_names(type(logger))) for logger in trainer.loggers]
    kinds = [type(thing) for thing, _ in silenced]
    try:
        for thing, names in silenced:
            thing.__class__ = _silent(type(thing), names)
        yield
    finally:
        for (thing, _), kind in zip(silenced, kinds, strict=True):
            thing.__class__ = kind


def _writing_names(kind: type) -> set[str]:
    """The names of a logger by which something is written."""
    writing = {name for name in dir(kind) if name.startswith(("log_", "save_", "after_"))}
    return {"experiment", "save", "finalize", *writing} - {"log_dir", "save_dir"}


def _silent(kind: type, names: set[str]) -> type:
    # Properties, for some callbacks have functions among the attributes of the object itself.
    return type(kind.__name__, (kind,), {name: property(lambda _: _SILENCE) for name in names})
