"""Compares what the package finds and adds with a row's layers."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy
import torch
from torch import Tensor, nn

from tests.libraries.taps import Layer, Reference, reference

TOLERANCE, SINGLE = 1e-8, 1e-5  # in float64 and in float32
PREFIX = "psp_z2_train/"


@dataclass(frozen=True)
class Case:
    """A network, a loss and its layers."""

    model: nn.Module
    step: Callable[[nn.Module], Tensor]  # the same loss at each call
    layers: Sequence[Layer]
    activations: Sequence[Any] = ()
    says: str = ""  # a warning or an error with this text is what the documentation promises
    unseen: Sequence[str] = ()  # layers that may be missing where that is said
    must_say: bool = False  # whether a callback that says nothing is wrong though its layers are right


@dataclass(frozen=True)
class Training:
    """A LightningModule of the library in the library's own training.

    `fit` trains a fresh module for a step in float64 with the callbacks given, and `layers` gives that module's layers.
    """

    fit: Callable[[list[Any]], None]
    layers: Callable[[nn.Module], Sequence[Layer]]
    lightning: str = "lightning.pytorch"  # the package whose Trainer and Callback it uses
    says: str = ""


@dataclass(frozen=True)
class Row:
    library: str
    name: str
    make: Callable[[], Case | Training]
    double: bool = True  # in float64, which some functions of libraries do not know

    def __str__(self) -> str:
        return f"{self.library}-{self.name}"


@dataclass
class Found:
    """What a way of use gave: layers, the error of the gradient, what was said or raised."""

    way: str
    expected: list[str]
    layers: list[str] = field(default_factory=list)
    nameless: Sequence[str] = ()  # layers of which the definition does not say the name
    error: float = float("nan")
    values_off: list[str] = field(default_factory=list)  # layers whose ⟨z²⟩ is another
    said: list[str] = field(default_factory=list)
    raised: str = ""
    says: str = ""
    unseen: Sequence[str] = ()
    tolerance: float = TOLERANCE
    must_say: bool = False

    def settle(self, found: Sequence[str]) -> dict[str, str]:
        """Takes the layers found, a surplus one for a nameless one, and gives row's name by found name."""
        known = set(self.expected)
        surplus = [name for name in found if name not in known]
        wanted = [name for name in self.nameless if name not in found]
        renamed = dict(zip(surplus, wanted, strict=True)) if len(surplus) == len(wanted) else {}
        self.layers = [renamed.get(name, name) for name in found]
        return dict(zip(found, self.layers, strict=True))

    @property
    def missing(self) -> list[str]:
        return [name for name in self.expected if name not in set(self.layers)]

    @property
    def surplus(self) -> list[str]:
        return [name for name in self.layers if name not in set(self.expected)]

    @property
    def verdict(self) -> str:
        """`exact`, `said` where the row promises a warning or error, or what is wrong."""
        told = bool(self.says) and any(self.says.lower() in text.lower() for text in [*self.said, self.raised])
        if self.raised:
            return "said" if told else f"raised {self.raised}"
        wrong = []
        if set(self.missing) - set(self.unseen if told else ()):
            wrong.append(f"missing {self.missing}")
        if self.surplus:
            wrong.append(f"surplus {self.surplus}")
        if not self.error <= self.tolerance:
            wrong.append(f"gradient off by {self.error:.1e}")
        if self.values_off:
            wrong.append(f"values off: {self.values_off}")
        if self.must_say and not told:
            wrong.append(f"does not say {self.says!r}")
        unseen = [text for text in self.said if UNSEEN.search(text)]
        if unseen and not told:
            wrong.append(f"says {unseen}")
        return "; ".join(wrong) or ("said" if told else "exact")


# What only networks that are not seen whole may be told.
UNSEEN = re.compile(r"activations=|not seen|only the output", re.IGNORECASE)


@contextlib.contextmanager
def whole_doubles() -> Iterator[None]:
    """Casts to float32 inside a library's code become casts to float64, so that nothing is rounded on the way."""

    def cast(z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return z.to(torch.float64, copy=True)

    torch.storage._storage_type_to_dtype_map()  # is made once, from the names that are changed here
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with (
            patch.object(torch, "float32", torch.float64),
            patch.object(torch, "float", torch.float64),
            patch.object(Tensor, "float", cast),
        ):
            yield
    finally:
        torch.set_default_dtype(before)


def seed(number: int = 0) -> None:
    random.seed(number)
    numpy.random.seed(number)
    torch.manual_seed(number)


def check(row: Row) -> list[Found]:
    """What each way of use gives for a row."""
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    with warnings.catch_warnings(), whole_doubles() if row.double else contextlib.nullcontext():
        warnings.simplefilter("ignore")
        seed()
        made = row.make()
        results = [_trained(made)] if isinstance(made, Training) else [_recorded(made), _called_back(made)]
    for found in results:
        found.tolerance = TOLERANCE if row.double else SINGLE
    return results


def _recorded(case: Case) -> Found:
    from lightning_psp import psp_penalty, record_potentials

    model = case.model
    state = _State(model)
    layers = list(case.layers)
    expected = reference(model, lambda: _seeded(case, model), layers, live_only=False)
    _assert_liveness(layers, expected)
    found = Found("record_potentials", [one.name for one in layers], says=case.says, unseen=case.unseen)
    found.nameless = [one.name for one in layers if not one.named]
    state.restore()
    model.zero_grad()
    with _listening(found), _reported(found):
        with record_potentials(model, activations=case.activations) as potentials:
            loss = _seeded(case, model)
        found.settle(_base_names(list(potentials), found.expected))
        if found.missing and set(found.missing) <= set(case.unseen):
            random_numbers = _State(model)
            seen = [one for one in layers if one.name in found.layers]
            expected = reference(model, lambda: _seeded(case, model), seen, live_only=False)
            random_numbers.restore()
        lam = expected.balanced_lam()
        (loss + lam * psp_penalty(potentials)).backward()
        found.error = expected.error(gradients_of(model), lam)
    state.restore()
    return found


def _called_back(case: Case) -> Found:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_psp import PSPCallback

    class Wrapped(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = case.model
            self.found: dict[str, Tensor] = {}

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return _seeded(case, self.network)

        def on_after_backward(self) -> None:
            self.found = gradients_of(self)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    module = Wrapped()
    state = _State(case.model)
    layers = [one.under("network.") for one in case.layers]
    names = [one.name for one in layers]
    expected = reference(module, lambda: module.training_step(None, 0), layers, live_only=True)
    state.restore()
    found = Found("PSPCallback", names, says=case.says, unseen=[f"network.{name}" for name in case.unseen])
    found.nameless = [one.name for one in layers if not one.named]
    found.must_say = case.must_say
    for _ in range(2):
        callback = PSPCallback(lam=expected.balanced_lam(), entropy=(), activations=case.activations)
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            callbacks=[callback],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module.zero_grad()
        with _listening(found), _reported(found):
            trainer.fit(module, torch.utils.data.DataLoader([0]))
            _compare(found, trainer, module.found, expected, callback.lam)
        state.restore()
        if not found.missing or set(found.missing) - set(found.unseen):
            break
        seen = [one for one in layers if one.name in found.layers]
        expected = reference(module, lambda: module.training_step(None, 0), seen, live_only=True)
        state.restore()
    return found


def _compare(found: Found, trainer: Any, gradients: dict[str, Tensor], expected: Reference, lam: float) -> None:
    """The names and values that were logged, and the gradient."""
    logged = {k.partition("/")[2]: v.item() for k, v in trainer.callback_metrics.items() if k.startswith(PREFIX)}
    settled = found.settle(list(logged))
    logged = {settled[k]: v for k, v in logged.items()}
    found.error = expected.error(gradients, lam)
    found.values_off = [
        k for k, v in logged.items() if k in expected.values and abs(v - expected.values[k]) > 1e-5 * expected.values[k]
    ]


def _trained(training: Training) -> Found:
    import importlib

    from lightning_psp import PSPCallback

    base = importlib.import_module(training.lightning).Callback

    class Probe(base):
        """Computes the reference before the first step, and takes the step's gradient."""

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx or hasattr(self, "expected"):
                return
            state = _State(pl_module)
            self.layers = list(training.layers(pl_module))
            quiet = {name: lambda *args, **kwargs: None for name in ("log", "log_dict")}
            pl_module.__dict__.update(quiet)
            try:
                self.expected = reference(
                    pl_module, lambda: _loss(pl_module.training_step(batch, batch_idx)), self.layers, live_only=True
                )
            finally:
                for name in quiet:
                    del pl_module.__dict__[name]
            state.restore()

        def __deepcopy__(self, memo: Any) -> Any:
            return self  # libraries copy their models with the callbacks

        def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
            self.trainer = trainer

        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            if not hasattr(self, "found"):
                self.found = gradients_of(pl_module)

    seed()
    first = Probe()
    training.fit([first])
    callback = PSPCallback(lam=first.expected.balanced_lam(), entropy=())
    seed()
    second = Probe()
    names = [one.name for one in first.layers]
    found = Found("library's Trainer", names, says=training.says)
    found.nameless = [one.name for one in first.layers if not one.named]
    with _listening(found), _reported(found):
        training.fit([callback, second])
        _compare(found, second.trainer, second.found, second.expected, callback.lam)
    return found


def _loss(result: Any) -> Tensor:
    return result["loss"] if isinstance(result, dict) else result


def _seeded(case: Case, model: nn.Module) -> Tensor:
    seed(1)
    return case.step(model)


def _assert_liveness(layers: list[Layer], expected: Reference) -> None:
    said = {one.name for one in layers if not one.live}
    assert said == expected.not_live, f"the row says that {said} get no gradient, but it is {set(expected.not_live)}"


def _base_names(found: list[str], expected: list[str]) -> list[str]:
    """Layers for entries: `name:1` beside `name` is a further pass or part unless the row has a layer of that name."""
    known = set(expected)
    names = [
        name if name in known or name.rpartition(":")[0] not in known else name.rpartition(":")[0] for name in found
    ]
    return list(dict.fromkeys(names))


def gradients_of(module: nn.Module) -> dict[str, Tensor]:
    return {
        k: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for k, p in module.named_parameters()
        if p.requires_grad
    }


class _State:
    """Buffers and random numbers of before."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.buffers = {k: b.clone() for k, b in module.named_buffers()}
        self.random = (torch.get_rng_state(), numpy.random.get_state(), random.getstate())

    def restore(self) -> None:
        for k, b in self.module.named_buffers():
            if k in self.buffers and self.buffers[k].shape == b.shape:
                b.data.copy_(self.buffers[k])
        torch.set_rng_state(self.random[0])
        numpy.random.set_state(self.random[1])
        random.setstate(self.random[2])


@contextlib.contextmanager
def _listening(found: Found) -> Iterator[None]:
    """Keeps what is said, as warnings and by loggers."""

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.said.append(record.getMessage())

    handler = Keep()
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning_psp", "pytorch_lightning")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for logger in loggers:
            logger.addHandler(handler)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.removeHandler(handler)
                logger.setLevel(level)
            found.said += [str(warning.message) for warning in caught]


@contextlib.contextmanager
def _reported(found: Found) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        found.raised = f"{type(error).__name__}: {error}"
