"""⟨z²⟩ over many batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_psp.functional.mean_square import _check_potential, _mean_square_compute, _mean_square_update
from lightning_psp.functional.precision import widest_float


class MeanSquarePotential(Metric):
    """Mean squared potential (docstring follows)."""

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
        _check_potential(z)
        square_sum, elements = _mean_square_update(z)
        self.square_sum = self.square_sum + square_sum
        self.elements = self.elements + elements

    def compute(self) -> Tensor:
        """⟨z²⟩ of all values so far, NaN before the first."""
        return _mean_square_compute(self.square_sum, self.elements)

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Plots a value or several; see ``torchmetrics.Metric.plot``."""
        return self._plot(val, ax)
