"""Leaving a network, and random numbers, as they were."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torchmetrics import Metric

from lightning_psp.functional.loader_generators import loader_generators
from lightning_psp.torch_private.modules import hooks_on, parts_of, tables_of

# The layers that keep statistics of what they normalise.
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
NORMALISATIONS = (
    *BATCH_NORMS,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)


class Unchanged:
    """Gives back what a network and random number generators had when this was made.

    That is: weights, their gradients and buffers with their types and devices, and which of them are there, tensors
    that are none of these (pruning and older weight norms keep the weight that they computed last in one), the modules
    that it is made of, their modes and hooks, what asks for a gradient, the momentum of batch norms, whether gradient
    is enabled, and the state of the random number generators of Python, NumPy and torch. Metrics inside the network
    keep what they are given.

    To be entered twice, for Ctrl-C may cut short one exit, but not the other.

    Args:
        module: the network.
        data: the batches that it will be called with, if any; the generators of a `DataLoader`, of its sampler and of
            its data set get their states back, too.

    Raises:
        ValueError: if a parameter or buffer of the network is not made yet.

    Example:
        >>> network = nn.Linear(2, 3)
        >>> unchanged = Unchanged(network)
        >>> with unchanged, unchanged:
        ...     _ = nn.init.zeros_(network.eval().weight)
        >>> network.training, bool(network.weight.any())
        (True, True)
    """

    def __init__(self, module: nn.Module, data: Any = None) -> None:
        parts = list(module.modules())
        self._modes = [(part, part.training) for part in parts]
        tables: list[Any] = [table for part in parts for table in (*tables_of(part), *hooks_on(part), parts_of(part))]
        self._tables = [(table, table.copy()) for table in tables]
        self._momenta = [(part, part.momentum) for part in parts if isinstance(part, NORMALISATIONS)]
        self._flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
        self._plain = [(part, _plain_tensors(part)) for part in parts if not isinstance(part, Metric)]
        tensors = [*module.named_parameters(), *module.named_buffers()]
        tensors += [named for _, plain in self._plain for named in plain.items()]
        self._gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
        tensors += [("", gradient) for _, gradient in self._gradients if gradient is not None]
        for name, tensor in tensors:
            refuse_lazy(name, tensor)
        self._values = [(tensor, tensor.detach().clone()) for _, tensor in tensors]
        self._is_grad_enabled = torch.is_grad_enabled()
        self._random_numbers = RandomNumbers(data)

    def __enter__(self) -> Unchanged:
        """Does nothing: what is given back was noted when this was made."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives everything back."""
        for table, before in self._tables:
            if list(table) != list(before):  # else there would be a moment in which it is empty
                table.clear()
            table.update(before)
        for part, plain in self._plain:
            now = _plain_tensors(part)
            for name in now.keys() - plain.keys():
                delattr(part, name)
            for name, tensor in plain.items():
                if now.get(name) is not tensor:
                    setattr(part, name, tensor)
        for part, is_training in self._modes:
            part.training = is_training
        for part, momentum in self._momenta:
            part.momentum = momentum
        for parameter, requires_grad in self._flags:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
        with torch.inference_mode():  # where tensors that were made in that mode can be written, too
            for tensor, value in self._values:
                # `data`: a graph of the user's that holds a tensor is not to take it for overwritten.
                if tensor.dtype != value.dtype or tensor.device != value.device:  # a trainer has moved the network
                    tensor.data = value
                each_entry_once(tensor.data).copy_(each_entry_once(value, tensor))
        for parameter, gradient in self._gradients:  # which have the types of their weights
            if parameter.grad is not gradient:
                parameter.grad = gradient
        torch.clear_autocast_cache()  # which may hold the weights in another precision
        self._random_numbers.restore()
        torch.set_grad_enabled(self._is_grad_enabled)


class RandomNumbers:
    """The state that random number generators had when this was made.

    Args:
        data: as for :class:`Unchanged`.

    Example:
        >>> random_numbers = RandomNumbers()
        >>> first = torch.rand(1)
        >>> random_numbers.restore()
        >>> bool(torch.rand(1) == first)
        True
    """

    def __init__(self, data: Any = None) -> None:
        self._python, self._numpy = random.getstate(), np.random.get_state()
        self._generators = [(generator, generator.get_state()) for generator in generators(data)]

    def restore(self) -> None:
        """Gives it back."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        for generator, state in self._generators:
            generator.set_state(state)


def _plain_tensors(part: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in vars(part).items() if isinstance(value, Tensor)}


def refuse_lazy(name: str, tensor: Tensor) -> None:
    """Raises an error for a parameter or buffer that is not made yet, or has no memory."""
    if is_lazy(tensor):
        raise ValueError(f"Expected argument `module` to know its weights but {name!r} is not made yet. Call it once.")
    if tensor.is_meta:
        raise ValueError(
            f"Expected argument `module` to know its weights but {name!r} is on the meta device, without numbers. Give"
            " the module memory (`to_empty`) and load them."
        )


def refuse_shared_memory(named: Iterable[tuple[str, Tensor]]) -> None:
    """Raises an error where two weights begin at the same memory: moving one moves the other, unknown to autograd."""
    known: dict[int, str] = {}
    for name, weight in named:
        place = weight.data_ptr() if weight.layout == torch.strided and weight.numel() > 0 else 0
        if place and known.setdefault(place, name) != name:
            raise ValueError(
                f"Expected argument `module` to hold each weight once but {name!r} lies in the memory of"
                f" {known[place]!r}. Tie them by one parameter of both layers, not by the data of two."
            )


def each_entry_once(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """A part of a tensor with one of the entries that are the same memory, for torch refuses to write to all of them.

    Args:
        tensor: the tensor.
        like: the tensor whose memory counts, of the same shape; by default this one.

    Example:
        >>> each_entry_once(torch.ones(2, 1).expand(2, 3)).shape
        torch.Size([2, 1])
    """
    memory = tensor if like is None else like
    if memory.layout != torch.strided or 0 not in memory.stride():
        return tensor
    return tensor[tuple(slice(1) if stride == 0 else slice(None) for stride in memory.stride())]


def generators(data: Any) -> list[torch.Generator]:
    """Those that torch draws from, and those of data loaders."""
    found = [torch.default_generator]
    if torch.cuda.is_initialized():
        found += torch.cuda.default_generators
    return found + loader_generators(data)


def seed_everything(data: Any, seed: int) -> None:
    """Has all generators start at a seed."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    for generator in generators(data):
        generator.manual_seed(seed)


@contextmanager
def buffers_and_random_numbers_kept(module: nn.Module) -> Iterator[None]:
    """Gives a network's buffers back the values that they had, such as running statistics, and the random numbers."""
    random_numbers = RandomNumbers()
    tables = [table for part in module.modules() for table in tables_of(part)[1:]]
    kept = [(buffers, dict(buffers)) for buffers in tables]
    values = [(buffer, buffer.detach().clone()) for buffer in module.buffers() if not is_lazy(buffer)]
    try:
        yield
    finally:
        random_numbers.restore()
        for buffers, before in kept:
            buffers.clear()
            buffers.update(before)
        for buffer, value in values:
            # `data`: a graph of the user's that holds a buffer is not to take it for overwritten.
            each_entry_once(buffer.data).copy_(each_entry_once(value, buffer))
