"""Totals over potentials: numbers where reading them makes nothing wait, tensors where it would."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_psp.torch_private.foreach import products

# On a processor a number; on an accelerator, which a step is not to wait for, a tensor.
Total: TypeAlias = float | Tensor


def read_on_processor(total: Tensor) -> Total:
    """The number that a tensor holds if reading it makes nothing wait, else the tensor."""
    return total.item() if total.is_cpu else total


def magnitude(total: Total) -> Total:
    """Its absolute value."""
    return total.abs() if isinstance(total, Tensor) else abs(total)


def add_up(totals: list[Total]) -> Total:
    """The sum, as a number where all are."""
    if len(totals) == 1:
        return totals[0]
    tensors = [total for total in totals if isinstance(total, Tensor)]
    number = math.fsum(total for total in totals if not isinstance(total, Tensor))
    if not tensors:
        return number
    total = torch.stack([total.to(tensors[0].device) for total in tensors]).sum()
    return total + number if number else total


def add_up_weighted(totals: Sequence[tuple[float, Total]]) -> Total:
    """The sum of totals that are multiplied by a weight each, in a few kernels however many there are.

    Example:
        >>> add_up_weighted([(0.5, 4.0), (2.0, 3.0)])
        8.0
    """
    tensors = [(weight, total) for weight, total in totals if isinstance(total, Tensor)]
    numbers: list[Total] = [weight * total for weight, total in totals if not isinstance(total, Tensor)]
    weighted = products([total for _, total in tensors], [weight for weight, _ in tensors]) if tensors else ()
    return add_up([*numbers, *weighted])
