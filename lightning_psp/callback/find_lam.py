"""A search for λ by short trainings."""

from __future__ import annotations

import copy
import importlib
import logging
import math
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from tqdm.auto import tqdm

from lightning_psp.analysis.unchanged import Unchanged
from lightning_psp.callback.lam_search import LamSearch, Mode
from lightning_psp.callback.psp_callback import PSPCallback
from lightning_psp.functional.arguments import check_choice, check_integer, check_number
from lightning_psp.functional.loader_generators import loader_generators
from lightning_psp.lightnings.any_callback import refuse_other_lightning
from lightning_psp.pruning.module_attributes import ModuleAttributes

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

LAMS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# What a trainer holds of what was logged.
_LOGGED = ("callback_metrics", "logged_metrics", "progress_bar_metrics")
# What names of values begin with that the callback logs: of the network, and of single layers.
_OF_THIS_PACKAGE = ("psp/", "psp_")


def find_lam(
    trainer: Trainer,
    module: LightningModule,
    train_dataloaders: Any = None,
    val_dataloaders: Any = None,
    datamodule: Any = None,
    *,
    lams: Sequence[float] = LAMS,
    epochs: int = 3,
    monitor: str = "val_loss",
    mode: Mode = "min",
) -> LamSearch:
    """Tries several λ, each by a short training from the same start, and leaves everything as it was.

    Trains `module` once without penalty and once for each λ, with the trainer's own settings and random numbers, and
    notes everything that was logged by the end, ⟨z²⟩ included. The penalty's other settings are those of the trainer's
    `PSPCallback` where it has one, or of that which the module configures. Other callbacks, those that the module
    configures included, and the trainer's loggers and profiler take no part. Weights, gradients, attributes of
    the modules (counters, lists, metrics), random states, those of dataloaders included, the scale of losses in half
    precision, and the trainer's counters and logged values are the same at the start of each training and afterwards,
    also after an exception or Ctrl-C. Objects that the module or a data set holds and that are neither modules,
    tensors, random number generators of torch nor plain containers are the exception: they go through all trainings.

    Short trainings tell which λ are far too weak or too strong, not the last factor of two; and a cross-entropy can
    rise with λ while the error falls, so `monitor` should be what counts in the end.

    Args:
        trainer: the trainer of the training to come, with one process, and not yet training.
        module: the user's module.
        train_dataloaders: as in ``trainer.fit``.
        val_dataloaders: as in ``trainer.fit``.
        datamodule: as in ``trainer.fit``.
        lams: the λ to try beside 0, each more than 0.
        epochs: length of each training.
        monitor: name under which the module logs the value to choose by. None of this package's own: ⟨z²⟩ falls with λ
            whatever becomes of the network.
        mode: ``"min"`` where lower is better, or ``"max"``.

    Returns:
        A :class:`~lightning_psp.LamSearch`, with ``suggestion()`` and ``plot()``.

    Raises:
        ValueError: if an argument is outside what is allowed, if the trainer has several processes, if `monitor` is
            not logged, or if data end after one pass.
        TypeError: if trainer and module are of different Lightning packages, or an argument is of the wrong type.
        RuntimeError: if the trainer is training.

    Example:
        >>> import torch
        >>> from lightning.pytorch import LightningModule, Trainer
        >>> from lightning_psp import find_lam
        >>> class Regression(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.network = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        ...     def training_step(self, batch, batch_idx):
        ...         return (self.network(batch) - batch.sum(1, keepdim=True)).square().mean()
        ...     def validation_step(self, batch, batch_idx):
        ...         self.log("val_loss", self.training_step(batch, batch_idx))
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.01)
        >>> loader = torch.utils.data.DataLoader(torch.randn(32, 3), batch_size=8)
        >>> trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> search = find_lam(trainer, Regression(), loader, loader, lams=(0.01, 0.1), epochs=1)
        >>> search.lams
        (0.0, 0.01, 0.1)
    """
    if not hasattr(trainer, "fit_loop"):
        raise TypeError(
            f"Expected argument `trainer` to be a Trainer of Lightning but got {type(trainer).__qualname__}."
        )
    refuse_other_lightning(trainer, module)
    if datamodule is not None and not hasattr(datamodule, "train_dataloader"):
        raise TypeError(
            f"Expected argument `datamodule` to be a LightningDataModule but got {datamodule!r}. Give `lams` and what"
            " follows by name."
        )
    check_choice("mode", mode, ("min", "max"))
    check_integer("epochs", epochs, at_least=1)
    tried = _checked_lams(lams)
    _check_monitor(monitor)
    if trainer.world_size > 1:
        raise ValueError(
            f"Expected argument `trainer` to have one process but got {trainer.world_size}: search with"
            " `Trainer(devices=1)`, and train with what it suggests."
        )
    if trainer.state.status == "running":
        raise RuntimeError("Expected argument `trainer` not to be training: call `find_lam` before `trainer.fit`.")
    callbacks: list[Any] = vars(trainer)["callbacks"]
    own = [each for each in callbacks if isinstance(each, PSPCallback)]
    callback = copy.deepcopy(own[0]) if own else PSPCallback()
    found: list[dict[str, float]] = []
    unchanged = Unchanged(module)
    with unchanged, unchanged, tqdm([0.0, *tried], unit="training", desc="λ") as bar:
        for lam in bar:
            bar.set_postfix_str(f"{lam:g}")

            each = copy.deepcopy(callback)
            each.lam = lam
            # The loaders of a data module or of the module itself are made in `fit`; they may hold a generator of it.
            holders = [train_dataloaders, val_dataloaders, *vars(module).values()]
            holders += [] if datamodule is None else vars(datamodule).values()
            with (
                _same_start(module),
                Unchanged(module),  # the first to leave: gradients have the types of their weights
                _same_random_numbers(holders),
                _short_training(trainer, module, each, epochs),
            ):
                trainer.fit(module, train_dataloaders, val_dataloaders, datamodule)
                if trainer.interrupted:
                    raise KeyboardInterrupt
                found.append({name: float(value) for name, value in trainer.callback_metrics.items()})
                has_validation = trainer.enable_validation
            if monitor not in found[-1] and len(found) > 1:
                raise ValueError(
                    "Expected arguments `train_dataloaders` and `val_dataloaders` to start again for each training, as"
                    f" a DataLoader does, but {monitor!r} was logged in the one with λ = 0 and not in the next. An"
                    " iterator or a generator ends after one pass."
                )
            if monitor not in found[-1]:
                own_names = ", ".join(name for name in found[-1] if not name.startswith(_OF_THIS_PACKAGE))
                raise ValueError(
                    f"Expected argument `monitor` to be a value that the module logs in each epoch but got {monitor!r}."
                    f" Logged were {own_names or 'none'}.{_reason(trainer, has_validation)}"
                )
    names = dict.fromkeys(name for values in found for name in values)
    values = {name: tuple(each.get(name, math.nan) for each in found) for name in names}
    search = LamSearch((0.0, *tried), values, monitor, mode)
    if search.is_undecided:
        rank_zero_warn(f"find_lam cannot choose λ: {monitor!r} is the same for every λ. Train longer, by `epochs`.")
    return search


def _reason(trainer: Trainer, has_validation: bool) -> str:
    """Why a value may not have been logged; empty where nothing tells."""
    if trainer.barebones:
        return " A trainer with `barebones=True` logs nothing."
    if trainer.limit_train_batches == 0:
        return " A trainer with `limit_train_batches=0` does not train."
    no_validation = " There was no validation: give `val_dataloaders`, and a `limit_val_batches` above 0."
    return "" if has_validation else no_validation


def _checked_lams(lams: Any) -> list[float]:
    """The λ to try in ascending order, each once."""
    if isinstance(lams, str) or not isinstance(lams, Iterable):
        raise TypeError(f"Expected argument `lams` to be several numbers, such as (0.01, 0.1), but got {lams!r}.")
    numbers = list(lams)
    for place, lam in enumerate(numbers):
        check_number(f"lams[{place}]", lam, above=0)
    if not numbers:
        raise ValueError("Expected argument `lams` to have at least one number but got none.")
    return sorted({float(lam) for lam in numbers})


def _check_monitor(monitor: Any) -> None:
    if not isinstance(monitor, str):
        raise TypeError(f"Expected argument `monitor` to be the name of a logged value but got {monitor!r}.")
    if monitor.startswith(_OF_THIS_PACKAGE):
        raise ValueError(
            f"Expected argument `monitor` to name a measure of success, such as the validation error, but got"
            f" {monitor!r}, which λ changes whatever becomes of the network."
        )


@contextmanager
def _same_start(module: LightningModule) -> Iterator[None]:
    """Gives a module the attributes and gradients back that it had."""
    attributes = ModuleAttributes(module)
    gradients = [(parameter, copy.deepcopy(parameter.grad)) for parameter in module.parameters()]
    try:
        yield
    finally:
        attributes.restore()
        for parameter, gradient in gradients:
            parameter.grad = gradient


@contextmanager
def _same_random_numbers(holders: Sequence[Any]) -> Iterator[None]:
    """Gives the random numbers of PyTorch, Python, NumPy and of dataloaders back."""
    own = [each for each in holders if isinstance(each, torch.Generator)] + loader_generators(holders)
    own_states = [(generator, generator.get_state()) for generator in own]
    states = torch.get_rng_state(), [*torch.cuda.get_rng_state_all()], random.getstate()
    numpy = sys.modules.get("numpy")
    numpys = None if numpy is None else numpy.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        torch.cuda.set_rng_state_all(states[1])
        random.setstate(states[2])
        for generator, state in own_states:
            generator.set_state(state)
        if numpy is not None:
            numpy.random.set_state(numpys)


@contextmanager
def _short_training(trainer: Trainer, module: LightningModule, callback: PSPCallback, epochs: int) -> Iterator[None]:
    """Has the trainer train from its first epoch, watched by nothing but the callback; then all is as it was."""
    loop = trainer.fit_loop
    configure: Callable[[], Any] = module.configure_callbacks

    def configure_penalty() -> list[PSPCallback]:
        configured = configure()
        several = configured if isinstance(configured, Sequence) else [configured]
        own = [copy.deepcopy(each) for each in several if isinstance(each, PSPCallback)]
        for each in own:  # it takes the place of the callback
            each.lam = callback.lam
        return own

    package = type(trainer).__module__.partition(".trainer")[0]
    says_how_it_ended = logging.getLogger(f"{package}.utilities.rank_zero")
    settings: list[tuple[Any, str, Any]] = [
        (trainer, "callbacks", [callback]),
        (module, "configure_callbacks", configure_penalty),
        (trainer, "loggers", _silent_loggers(trainer, package)),
        (trainer, "profiler", importlib.import_module(f"{package}.profilers").PassThroughProfiler()),
        (trainer, "check_val_every_n_epoch", 1 if trainer.check_val_every_n_epoch else None),
        (trainer, "num_sanity_val_steps", 0),
        (trainer, "should_stop", False),
        (trainer, "state", copy.copy(trainer.state)),
        (loop, "max_epochs", trainer.current_epoch + epochs),
        (loop.epoch_loop, "max_steps", -1),
    ]
    before = [getattr(owner, name) for owner, name, _ in settings]
    level = says_how_it_ended.level
    counters = copy.deepcopy(loop.state_dict())
    scale = copy.deepcopy(trainer.precision_plugin.state_dict())  # of losses in half precision
    logged = {name: dict(getattr(trainer, name)) for name in _LOGGED}
    # Such as whether the loop goes on from a checkpoint, which is what loading its state tells it.
    flags = [
        (each, {name: value for name, value in vars(each).items() if isinstance(value, bool)}) for each in _loops(loop)
    ]
    try:
        for owner, name, value in settings:
            setattr(owner, name, value)
        says_how_it_ended.setLevel(logging.WARNING)
        yield
    finally:
        for (owner, name, _), value in zip(settings, before, strict=True):
            setattr(owner, name, value)
        says_how_it_ended.setLevel(level)
        loop.load_state_dict(counters)
        trainer.precision_plugin.load_state_dict(scale)
        for name, values in logged.items():
            getattr(trainer, name).clear()
            getattr(trainer, name).update(values)
        for each, before_training in flags:
            vars(each).update(before_training)


def _loops(loop: Any) -> Iterator[Any]:
    """A loop of Lightning and those inside it."""
    yield loop
    for each in vars(loop).values():
        if hasattr(each, "restarting"):
            yield from _loops(each)


def _silent_loggers(trainer: Trainer, package: str) -> list[Any]:
    """As many loggers as the trainer has, so that `self.logger` of the module is none only where it was."""
    dummy = importlib.import_module(f"{package}.loggers.logger").DummyLogger
    return [dummy() for _ in trainer.loggers]
