"""The passes over potentials: their sum of squares, and their sum with a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_psp.functional.memory_order import memory_order
from lightning_psp.functional.precision import accumulation_dtype
from lightning_psp.torch_private.tensors import is_memory_held_elsewhere

# Potentials are worked through in parts of this length, short enough for one to stay in a processor's last cache from
# its sum of squares to its sum with the gradient. Shorter ones would cost more calls than they spare reads.
_PART = 2**21
# The error of a float32 sum that is taken in one go grows with its length: a dot product of equal values has none up to
# this length. Longer vectors are summed by rows.
_LONGEST_DOT = 2**15
_ROW = 2**10


def square_sum(potential: Tensor) -> Tensor:
    """Sum of the squares of all values, in one read and without a temporary of their size where layout allows it.

    Args:
        potential: real tensor of any shape; half precision is accumulated in float32.

    Returns:
        A scalar in float32, or in float64 for a float64 input, without a graph.

    Example:
        >>> square_sum(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
        tensor(14.)
    """
    if potential.requires_grad:
        potential = potential.detach()
    flat = _flatten(potential)
    if flat is None:
        return potential.to(accumulation_dtype(potential.dtype)).square().sum()
    if not flat.is_cpu:
        norm: Tensor = torch.linalg.vector_norm(flat, dtype=accumulation_dtype(potential.dtype))
        return norm.square()
    return _sum_of_squares(_accumulated(flat))


def _sum_of_squares(flat: Tensor) -> Tensor:
    """Sum of the squares of a float32 or float64 vector on a processor."""
    if flat.numel() <= _LONGEST_DOT:
        return torch.dot(flat, flat)
    end = flat.numel() // _ROW * _ROW
    total: Tensor = torch.linalg.vector_norm(flat[:end].view(-1, _ROW), dim=1).square_().sum()
    return total if end == flat.numel() else total + torch.dot(flat[end:], flat[end:])


def _accumulated(potential: Tensor) -> Tensor:
    dtype = potential.dtype
    return potential if dtype in (torch.float32, torch.float64) else potential.to(accumulation_dtype(dtype))


def _flatten(potential: Tensor) -> Tensor | None:
    """A vector view of the values in memory order, or None where they do not lie side by side."""
    if potential.is_contiguous():
        return potential.view(-1)
    dims = memory_order(potential)
    return None if dims is None else potential.permute(dims).view(-1)


def can_be_overwritten(tensor: Tensor) -> bool:
    """Whether nothing else holds the memory of this tensor, and each of its values has its own place there."""
    return not is_memory_held_elsewhere(tensor) and (tensor.is_contiguous() or memory_order(tensor) is not None)


def add_potential(gradient: Tensor, potential: Tensor, alpha: float, out: Tensor | None) -> tuple[Tensor, Tensor]:
    """Adds `alpha` times a potential to a gradient, and takes the potential's sum of squares on the way.

    Args:
        gradient: gradient of the shape and type of the potential.
        potential: the potential.
        alpha: the factor.
        out: the tensor to write to, which may be the potential itself; a new one if None.

    Returns:
        The new gradient, and the sum of squares as :func:`square_sum` gives it.
    """
    is_small = potential.numel() <= _PART
    if is_small or not (potential.is_cpu and potential.is_contiguous() and gradient.is_contiguous()):
        total = square_sum(potential)
        return torch.add(gradient, potential, alpha=alpha, out=out), total
    if out is None:
        out = torch.empty_like(gradient)
    sums = []
    parts = (tensor.view(-1).split(_PART) for tensor in (gradient, potential, out))
    for gradient_part, potential_part, out_part in zip(*parts, strict=True):
        sums.append(_sum_of_squares(_accumulated(potential_part)))
        torch.add(gradient_part, potential_part, alpha=alpha, out=out_part)
    return out, torch.stack(sums).sum()
