"""PSP-entropy over many batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat, rank_zero_warn

from lightning_psp.functional.entropy import (
    _add_counts,
    _entropy_of_units,
    _psp_entropy_compute,
    _psp_entropy_reduce,
    absent_classes_message,
    count_units,
    exact_estimate,
    sampling_message,
)
from lightning_psp.functional.estimate import EntropyEstimate
from lightning_psp.functional.joint_entropy import DEFAULT_MAX_SETS, _joint_entropy_compute, _joint_entropy_update
from lightning_psp.functional.precision import widest_float
from lightning_psp.functional.validation import Reduction, Unit, check_arguments, check_input


class PSPEntropy(Metric):
    """PSP-entropy (docstring follows)."""

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    plot_lower_bound = 0.0

    units: Tensor
    active: Tensor
    samples: Tensor
    states: list[Tensor]
    classes: list[Tensor]

    def __init__(
        self,
        num_classes: int,
        order: int = 1,
        unit: Unit = "element",
        reduction: Reduction = "mean",
        *,
        unit_dim: int = 1,
        max_sets: int = DEFAULT_MAX_SETS,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        check_arguments(num_classes, order, unit, reduction, unit_dim, max_sets, seed)
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.order = order
        self.unit = unit
        self.reduction = reduction
        self.unit_dim = unit_dim
        self.max_sets = max_sets
        self.seed = seed
        self.add_state("units", torch.tensor(0), dist_reduce_fx="max")
        if order == 1:
            self.add_state("active", torch.zeros(num_classes, 1, dtype=torch.int64), dist_reduce_fx="sum")
            self.add_state("samples", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        else:
            self.add_state("states", [], dist_reduce_fx="cat")
            self.add_state("classes", [], dist_reduce_fx="cat")

    def update(self, z: Tensor, target: Tensor) -> None:
        """Adds a batch of potentials ``[batch, …]`` with their classes ``[batch]``."""
        check_input(z, target, self.num_classes, self.unit, self.unit_dim)
        units = count_units(z, self.unit, self.unit_dim)
        if int(self.units) not in (0, units):
            raise ValueError(f"{units} but {int(self.units)}")
        if self.order == 1:
            if int(self.units) == 0:
                self.active = self.active.new_zeros(self.num_classes, units)
            _add_counts(self.active, self.samples, z, target, self.unit, self.unit_dim)
        else:
            states, classes, _ = _joint_entropy_update(z, target, self.unit, self.unit_dim)
            self.states.append(states)
            self.classes.append(classes)
        self.units = torch.full_like(self.units, units)

    def compute(self) -> Tensor:
        """The entropy in bits."""
        if self.order == 1:
            return _psp_entropy_reduce(_entropy_of_units(self.active, self.samples), self.reduction)
        return torch.tensor(self._estimate().value, dtype=widest_float(self.device), device=self.device)

    def classwise(self) -> Tensor:
        """Entropy of each unit within each class ``[num_classes, units]``."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync):
            return _psp_entropy_compute(self.active, self.samples)

    def estimate(self) -> EntropyEstimate:
        """The entropy with its standard error."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync):
            return self._estimate()

    def _estimate(self) -> EntropyEstimate:
        if self.order == 1:
            return exact_estimate(_entropy_of_units(self.active, self.samples))
        return _joint_entropy_compute(
            dim_zero_cat(self.states),
            dim_zero_cat(self.classes),
            int(self.units),
            self.num_classes,
            self.order,
            self.max_sets,
            self.seed,
        )

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Plots a value or several; see ``torchmetrics.Metric.plot``."""
        return self._plot(val, ax)
