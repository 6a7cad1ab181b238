"""The Python attributes of a network's modules, kept and given back: metrics, lists of outputs, counters."""

from __future__ import annotations

import sys
from collections import OrderedDict, defaultdict, deque
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

_CONTAINERS = (list, tuple, set, dict, OrderedDict, defaultdict, deque)
# More numbers are data, such as images of a batch that a module holds for later, and nothing that a step adds to, but
# for the state of a metric.
_LARGEST_COPIED = 1 << 22
# What makes a module a module: no step changes it, but for the mode.
_NOT_KEPT = vars(nn.Module()).keys() - {"training"}


class ModuleAttributes:
    """What the modules of a network hold besides parameters and buffers, as it was when this was made.

    States of metrics are among it, modes, and whatever a step gathers in plain containers. Tensors and containers are
    copied, other objects are held as they are. An attribute that comes later goes when they are given back.

    Args:
        module: the network.

    Example:
        >>> module = nn.Linear(1, 1)
        >>> module.losses = []
        >>> attributes = ModuleAttributes(module)
        >>> module.losses.append(0.5)
        >>> attributes.restore()
        >>> module.losses
        []
    """

    # What is kept is to outlive a validation, whose tensors no training could use.
    @torch.inference_mode(False)
    def __init__(self, module: nn.Module) -> None:
        self._attributes = [(part, _copied(part, _own(part))) for part in module.modules()]

    @torch.inference_mode(False)
    def restore(self) -> None:
        """Gives them back, as often as is asked for."""
        for part, attributes in self._attributes:
            for name in _own(part).keys() - attributes.keys():
                del vars(part)[name]
            vars(part).update(_copied(part, attributes))


def _own(part: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(part).items() if name not in _NOT_KEPT}


def _copied(part: nn.Module, attributes: dict[str, Any]) -> dict[str, Any]:
    largest = sys.maxsize if isinstance(part, Metric) else _LARGEST_COPIED
    return {name: _copy(value, largest) for name, value in attributes.items()}


def _copy(value: Any, largest: int) -> Any:
    if type(value) is Tensor and value.grad_fn is None and value.numel() <= largest:
        return value.detach().clone().requires_grad_(value.requires_grad)
    if type(value) not in _CONTAINERS:
        return value
    if isinstance(value, defaultdict):
        return defaultdict(value.default_factory, {key: _copy(each, largest) for key, each in value.items()})
    if isinstance(value, dict):
        return type(value)((key, _copy(each, largest)) for key, each in value.items())
    copies = (_copy(each, largest) for each in value)
    return deque(copies, value.maxlen) if isinstance(value, deque) else type(value)(copies)
