"""Totals over potentials: numbers where reading them makes nothing wait, tensors where it would."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

# On a processor a number; on an accelerator, which a step is not to wait for, a tensor.
Total: TypeAlias = float | Tensor


def read_on_processor(total: Tensor) -> Total:
    """The number that a tensor holds if reading it makes nothing wait, else the tensor."""
    return total.item() if total.is_cpu else total


def add_up(totals: list[Total]) -> Total:
    """The sum, as a number where all are."""
    if len(totals) == 1:
        return totals[0]
    tensors = [total for total in totals if isinstance(total, Tensor)]
    number = math.fsum(total for total in totals if not isinstance(total, Tensor))
    if not tensors:
        return number
    return torch.stack([total.to(tensors[0].device) for total in tensors]).sum() + number
