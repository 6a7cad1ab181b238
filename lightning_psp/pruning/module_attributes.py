"""The Python attributes of a network's modules, kept and given back: metrics, lists of outputs, counters."""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torchmetrics import Metric

# Gives a value back, as it was when this was made.
GiveBack: TypeAlias = Callable[[], Any]

_CONTAINERS = (list, tuple, set, dict, OrderedDict, defaultdict, Counter, deque)
# More numbers are data, such as images of a batch that a module holds for later, and nothing that a step adds to, but
# for the state of a metric.
_LARGEST_COPIED = 1 << 22
# What makes a module a module: no step changes it, but for the mode.
_NOT_KEPT = vars(nn.Module()).keys() - {"training"}


class ModuleAttributes:
    """What the modules of a network hold besides parameters and buffers, as it was when this was made.

    States of metrics are among it, modes, and whatever a step gathers in plain containers and NumPy arrays. Tensors are
    copied. Of a container what is in it is kept, and given back to this very container, for others may hold it: a hook
    that writes what a layer has computed into a dict. Other objects are held as they are. An attribute that comes later
    goes when they are given back.

    Args:
        module: the network.

    Example:
        >>> module = nn.Linear(1, 1)
        >>> module.losses = losses = []
        >>> attributes = ModuleAttributes(module)
        >>> module.losses.append(0.5)
        >>> attributes.restore()
        >>> module.losses, module.losses is losses
        ([], True)
    """

    # What is kept is to outlive a validation, whose tensors no training could use.
    @torch.inference_mode(False)
    def __init__(self, module: nn.Module) -> None:
        self._attributes = [(part, _own(part)) for part in module.modules()]
        self._kept = [_kept(part, own) for part, own in self._attributes]

    @torch.inference_mode(False)
    def restore(self) -> None:
        """Gives them back, as often as is asked for."""
        for (part, _), kept in zip(self._attributes, self._kept, strict=True):
            for name in _own(part).keys() - kept.keys():
                del vars(part)[name]
            vars(part).update({name: give_back() for name, give_back in kept.items()})

    @torch.inference_mode(False)
    def containers_as_now(self) -> Callable[[], None]:
        """Keeps what is in the containers now, for they may be elsewhere when others have taken their place.

        Returns:
            Gives it back to them.
        """
        now = [give_back for part, own in self._attributes for give_back in _kept(part, own).values()]

        @torch.inference_mode(False)
        def give_all_back() -> None:
            for give_back in now:
                give_back()

        return give_all_back


def _own(part: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(part).items() if name not in _NOT_KEPT}


def _kept(part: nn.Module, attributes: dict[str, Any]) -> dict[str, GiveBack]:
    largest = sys.maxsize if isinstance(part, Metric) else _LARGEST_COPIED
    return {name: _keep(value, largest) for name, value in attributes.items()}


def _keep(value: Any, largest: int) -> GiveBack:
    if type(value) is Tensor and value.grad_fn is None and value.numel() <= largest:
        copy = _copy(value)
        return lambda: _copy(copy)
    if _is_array(value) and value.flags.writeable and value.size <= largest:
        numbers = value.copy()
        return lambda: _overwrite(value, numbers)
    if type(value) not in _CONTAINERS:
        return lambda: value
    if isinstance(value, dict):
        entries = [(key, _keep(each, largest)) for key, each in value.items()]
        return lambda: _refill(value, {key: give_back() for key, give_back in entries})
    if isinstance(value, set):  # of what cannot change
        members = frozenset(value)
        return lambda: _refill(value, members)
    parts = [_keep(each, largest) for each in value]
    if isinstance(value, tuple):
        return lambda: _tuple_of(value, [give_back() for give_back in parts])
    return lambda: _refill(value, [give_back() for give_back in parts])


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _is_array(value: Any) -> bool:
    numpy: Any = sys.modules.get("numpy")
    return numpy is not None and type(value) is numpy.ndarray


def _overwrite(array: Any, numbers: Any) -> Any:
    array[...] = numbers
    return array


def _refill(container: Any, content: Any) -> Any:
    container.clear()
    if isinstance(container, (dict, set)):
        container.update(content)
    else:
        container.extend(content)
    return container


def _tuple_of(value: tuple[Any, ...], parts: list[Any]) -> tuple[Any, ...]:
    is_same = all(one is other for one, other in zip(value, parts, strict=True))
    return value if is_same else tuple(parts)
