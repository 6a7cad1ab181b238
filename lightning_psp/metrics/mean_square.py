"""⟨z²⟩ over many batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_psp.functional.mean_square import _mean_square_compute, _mean_square_update, check_potential
from lightning_psp.functional.precision import widest_float
from lightning_psp.metrics.fixed_types import FixedTypeMetric
from lightning_psp.metrics.pictures import with_units
from lightning_psp.metrics.torchmetrics_private import note_updates, picture


class MeanSquarePotential(FixedTypeMetric):
    r"""Mean squared potential ⟨z²⟩ of a layer over many batches.

    The mean of z² over all samples, units and positions, :math:`\langle z^2 \rangle = \frac1n \sum_i z_i^2`, each
    value weighing the same: the penalty of Tartaglione et al. (2019) on one layer. ``update(z)`` takes potentials
    ``[batch, …]``; those in half precision are squared in float32. ``compute()`` gives a scalar in float64 (float32 on
    devices without it), NaN before the first value. The sum is kept in that type, too, whatever ``set_dtype`` or
    ``to`` are given.

    Args:
        kwargs: arguments of ``torchmetrics.Metric``.

    Raises:
        TypeError: in an update, if `z` is not a real floating point tensor.

    Example:
        >>> import torch
        >>> metric = MeanSquarePotential()
        >>> metric.update(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
        >>> metric.update(torch.tensor([[4.0, 0.0]]))
        >>> metric.compute()  # (1 + 4 + 9 + 16) / 6
        tensor(5., dtype=torch.float64)
    """

    is_differentiable = True
    higher_is_better = None
    full_state_update = False
    plot_lower_bound = 0.0

    square_sum: Tensor
    elements: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("square_sum", torch.tensor(0.0, dtype=widest_float(self.device)), dist_reduce_fx="sum")
        self.add_state("elements", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, z: Tensor) -> None:
        """Adds the potentials ``[batch, …]`` of a batch."""
        check_potential(z)
        self._add(*_mean_square_update(z))

    def add_sums(self, square_sums: Sequence[float | Tensor], elements: int) -> None:
        """Adds batches of which the sums are known.

        Args:
            square_sums: the sum of z² of each batch, a number or a scalar.
            elements: the number of values of all of them.
        """
        self._add(sum(total for total in square_sums if not isinstance(total, Tensor)), elements)
        tensors = [total for total in square_sums if isinstance(total, Tensor)]
        if tensors:
            device = tensors[0].device
            together = torch.stack([total.to(device) for total in tensors]).sum(dtype=widest_float(device))
            self._add(together.to(self.square_sum), 0)
        note_updates(self, len(square_sums))

    def _add(self, square_sum: float | Tensor, elements: int) -> None:
        self.square_sum = self.square_sum + square_sum
        self.elements = self.elements + elements

    def compute(self) -> Tensor:
        """⟨z²⟩ of all values so far, NaN before the first."""
        return _mean_square_compute(self.square_sum, self.elements)

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Plots a value or several; see ``torchmetrics.Metric.plot``."""
        return with_units(picture(self, val, ax), "mean squared potential ⟨z²⟩")
