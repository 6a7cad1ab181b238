"""A training on a device without memory: when a step would wait for an accelerator, and which operators it calls."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

DEVICE = torch.device("meta")
# Each reads values, for which a processor waits until an accelerator has computed them.
READING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::_unique2", "aten::_to_copy"}


@dataclass
class Step:
    """What a step calls, and what it reads from the device."""

    called: Counter[str] = field(default_factory=Counter)
    read: list[str] = field(default_factory=list)


class _Listening(TorchDispatchMode):
    """Notes the operators that are called, and gives numbers for what is read."""

    def __init__(self) -> None:
        super().__init__()
        self.step = Step()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name, kwargs or {}
        self.step.called[name] += 1
        is_on_device = bool(args) and isinstance(args[0], Tensor) and args[0].device == DEVICE
        is_copy = name == "aten::_to_copy"
        if is_on_device and name in READING and not (is_copy and kwargs.get("device", DEVICE) == DEVICE):
            self.step.read.append(name)
            return self._read(name, torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype))
        return func(*args, **kwargs)

    def _read(self, name: str, ones: Tensor) -> Any:
        """What may be read: ones, and of a comparison that it does not hold."""
        if name in ("aten::_local_scalar_dense", "aten::equal"):
            return name == "aten::_local_scalar_dense" and ones.dtype is not torch.bool
        return {"aten::nonzero": ones.bool().nonzero(), "aten::_unique2": (ones, ones, ones)}.get(name, ones)


class Trained(LightningModule):
    """Cross entropy of a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        return functional.cross_entropy(self.network(batch[0]), batch[1])

    def cpu(self) -> LightningModule:
        return self  # there is nothing to copy

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, foreach=True)


class _WithoutMemory(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        """Takes any."""


class _EndedError(Exception):
    """The steps that are wanted have run; the end of an epoch reads its values."""


class _Steps(Callback):
    """Has a new note taken of each step."""

    def __init__(self, number: int, listening: _Listening) -> None:
        self.steps: list[Step] = []
        self._number = number
        self._listening = listening

    def on_train_batch_start(self, *args: Any) -> None:
        if len(self.steps) == self._number:
            self._listening.step = Step()
            raise _EndedError
        self._listening.step = Step()
        self.steps.append(self._listening.step)


class LossScaling(Precision):
    """Multiplies the loss by a scale that lies on the device, as that of fp16 does."""

    class Scaler:
        """What a callback may ask of it."""

        def __init__(self) -> None:
            self._scale = torch.full((), 2.0**16, device=DEVICE)

        def scale(self, loss: Tensor) -> Tensor:
            return loss * self._scale

        def get_scale(self) -> float:
            return self._scale.item()

    def __init__(self) -> None:
        self.scaler = self.Scaler()

    def pre_backward(self, tensor: Tensor, module: LightningModule) -> Tensor:
        return super().pre_backward(self.scaler.scale(tensor), module)


def steps_of(
    network: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *callbacks: Callback,
    number: int,
    precision: Precision | None = None,
) -> list[Step]:
    """What each of some steps of a training on the device does.

    Args:
        network: what is trained; it loses its weights.
        inputs: a batch.
        labels: of it.
        callbacks: those of the training.
        number: number of steps.
        precision: how the trainer computes, in full precision if None.
    """
    listening = _Listening()
    steps = _Steps(number, listening)
    trainer = Trainer(
        callbacks=[steps, *callbacks],
        max_epochs=1,
        strategy=SingleDeviceStrategy(device=DEVICE, accelerator=_WithoutMemory()),
        plugins=[] if precision is None else [precision],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(_EndedError), listening:
        trainer.fit(Trained(network), DataLoader([(inputs, labels)] * (number + 1), batch_size=None))
    return steps.steps
