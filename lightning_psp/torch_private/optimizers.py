"""Optimisers: which of them have their steps told to hooks on the steps of all, and whose gradients are unscaled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_MARK = "hooked"  # of the step of a class, which the constructor of `Optimizer` has made call the hooks


def tells_of_steps(optimizer: Optimizer) -> bool:
    """Whether hooks on the steps of all optimisers are called for one whose class has a `step` of its own.

    They are not where its constructor does not call that of `Optimizer`. True where torch does not tell.

    Example:
        >>> class Wrapper(Optimizer):
        ...     def __init__(self, optimizer):
        ...         self.optimizer, self.param_groups = optimizer, optimizer.param_groups
        ...     def step(self, closure=None):
        ...         return self.optimizer.step(closure)
        >>> optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
        >>> tells_of_steps(optimizer), tells_of_steps(Wrapper(optimizer))
        (True, False)
    """
    return hasattr(type(optimizer).step, _MARK) or not _marks()


def has_unscaled(scaler: Any, optimizer: Optimizer) -> bool:
    """Whether a scaler of losses was asked to unscale an optimiser's gradients; False where this is not told.

    Example:
        >>> weight = torch.ones(1, requires_grad=True)
        >>> optimizer, scaler = torch.optim.SGD([weight], lr=0.1), torch.amp.GradScaler("cpu")
        >>> scaler.scale(weight.sum()).backward()
        >>> has_unscaled(scaler, optimizer)
        False
        >>> scaler.unscale_(optimizer)
        >>> has_unscaled(scaler, optimizer)
        True
    """
    state = getattr(scaler, "_per_optimizer_states", {}).get(id(optimizer), {})
    return getattr(state.get("stage"), "name", "") == "UNSCALED"


def _marks() -> bool:
    tensor: Tensor = torch.zeros(1, requires_grad=True)
    return hasattr(type(torch.optim.SGD([tensor], lr=0.0)).step, _MARK)
