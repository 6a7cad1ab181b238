"""Optimisers: which of them have their steps told to hooks on the steps of all optimisers."""

from __future__ import annotations

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


def _marks() -> bool:
    tensor: Tensor = torch.zeros(1, requires_grad=True)
    return hasattr(type(torch.optim.SGD([tensor], lr=0.0)).step, _MARK)
