"""⟨z²⟩, the mean squared potential."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_psp.functional.precision import accumulation_dtype, widest_float


def mean_square_potential(z: Tensor) -> Tensor:
    r"""Mean squared potential ⟨z²⟩ of a layer.

    The mean of z² over batch, units and positions, :math:`\langle z^2 \rangle = \frac1n \sum_i z_i^2`: the penalty of
    Tartaglione et al. (2019) on one layer, as the authors' code computes it. It is differentiable.

    Args:
        z: potentials ``[batch, …]``. Half precision is accumulated in float32.

    Returns:
        A scalar in float32, or in float64 for potentials in float64.

    Raises:
        TypeError: if `z` is not a real floating point tensor.
        ValueError: if `z` holds no values.

    Example:
        >>> import torch
        >>> mean_square_potential(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))  # (1 + 4 + 9 + 0) / 4
        tensor(3.5000)
    """
    check_potential(z)
    if z.numel() == 0:
        raise ValueError(f"Expected argument `z` to hold values but got shape {[*z.shape]}.")
    return z.to(accumulation_dtype(z.dtype)).square().mean()


def _mean_square_update(z: Tensor) -> tuple[Tensor, int]:
    """The sum of z² and the number of values."""
    return z.to(accumulation_dtype(z.dtype)).square().sum(dtype=widest_float(z.device)), z.numel()


def _mean_square_compute(square_sum: Tensor, elements: Tensor) -> Tensor:
    """⟨z²⟩ of the sums over all batches."""
    return square_sum / elements


def check_potential(z: Tensor) -> None:
    """Raises a TypeError unless `z` is a real floating point tensor."""
    if not isinstance(z, Tensor):
        raise TypeError(f"Expected argument `z` to be a tensor but got {type(z).__name__}.")
    if not torch.is_floating_point(z):
        raise TypeError(f"Expected argument `z` to be a real floating point tensor but got {z.dtype}.")
