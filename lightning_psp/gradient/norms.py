"""The norm of the gradient by all parameters together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_psp.functional.precision import accumulation_dtype
from lightning_psp.gradient.kernels import square_sum


def norm_of_mean(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor], processes: int) -> float:
    """The Euclidean norm of the mean over processes of a gradient, in all processes the same.

    The mean, and not a mean of norms, is what the optimiser is given, and what one process has on the whole batch. All
    processes have to call this with the same parameters. They reduce one vector of the size of these.

    Args:
        gradients: this process's gradient by each parameter, None for one that has none.
        parameters: the parameters.
        processes: the number of processes.

    Example:
        >>> weight, bias, unused = torch.ones(2), torch.ones(1), torch.ones(3)
        >>> norm_of_mean([torch.tensor([3.0, 0.0]), torch.tensor([4.0]), None], [weight, bias, unused], processes=1)
        5.0
    """
    if processes > 1:
        vector = torch.cat(
            [
                _as_vector(torch.zeros_like(parameter) if gradient is None else gradient).to(parameters[0].device)
                for gradient, parameter in zip(gradients, parameters, strict=True)
            ]
        )
        torch.distributed.all_reduce(vector)
        return square_sum(vector).sqrt().item() / processes
    sums = [square_sum(_as_vector(gradient)) for gradient in gradients if gradient is not None]
    return torch.stack([total.to(sums[0].device) for total in sums]).sum().sqrt().item() if sums else 0.0


def _as_vector(gradient: Tensor) -> Tensor:
    """All numbers of a gradient."""
    dense = gradient if gradient.layout == torch.strided else gradient.to_dense()
    real = torch.view_as_real(dense) if dense.is_complex() else dense
    return real.flatten().to(accumulation_dtype(real.dtype))
