"""PSP-entropy over many batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat, rank_zero_warn
from torchmetrics.utilities.distributed import gather_all_tensors
from torchmetrics.utilities.exceptions import TorchMetricsUserError

from lightning_psp.functional.entropy import (
    ClassCounts,
    _add_counts,
    _count_states,
    _entropy_of_units,
    _psp_entropy_compute,
    _psp_entropy_reduce,
    absent_classes_message,
    class_membership,
    exact_estimate,
    sampling_message,
)
from lightning_psp.functional.estimate import NO_ESTIMATE, EntropyEstimate
from lightning_psp.functional.joint_entropy import DEFAULT_MAX_SETS, _joint_entropy_compute
from lightning_psp.functional.precision import widest_float
from lightning_psp.functional.states import _joint_entropy_update
from lightning_psp.functional.validation import (
    Reduction,
    Unit,
    check_arguments,
    check_enough_units,
    check_input,
    check_same_units,
    count_units,
)
from lightning_psp.metrics.fixed_types import FixedTypeMetric
from lightning_psp.metrics.pictures import with_units
from lightning_psp.metrics.torchmetrics_private import is_synchronised, note_updates, picture, synchronises


class PSPEntropy(FixedTypeMetric):
    r"""PSP-entropy of a layer over many batches: how evenly its units are on and off within each class.

    The state of a unit is 1 where its potential z > 0, else 0. First order (Tartaglione et al., 2020, Eq. 3 to 5) is
    the mean over units of :math:`H(z_k) = \sum_c H(z_k|c)`, with :math:`H(z_k|c)` the binary entropy in bits of the
    state of unit k over the samples of class c, and 0·log 0 = 0. Order n is the mean over all sets of n units of the
    joint entropy of their 2ⁿ states, again summed over classes: exact for pairs, and for more units where there are
    at most `max_sets` sets. Otherwise it is that of a random sample of so many; a warning tells, once, its standard
    error, which :meth:`estimate` returns.

    ``update(z, target)`` takes potentials ``[batch, …]`` (``[batch]`` for a single unit) in any floating point type and
    their classes ``[batch]``, of type uint8, int8, int16, int32 or int64. ``compute()`` gives bits: a scalar, or
    ``[units]`` for ``reduction="none"``, in float64 (float32 on devices without it), and NaN where there were no
    samples. A class without samples contributes nothing, and is named in a warning, once.

    First order keeps a count for each class and unit, higher orders a bit for each sample and unit, as integers also
    where ``set_dtype`` or ``to`` are given a floating point type. Processes are
    synchronised by `torchmetrics`, those without samples, or without samples of a class, included.

    Args:
        num_classes: number of classes.
        order: number of units whose joint state is looked at, 1 to 62.
        unit: ``"element"`` takes every entry of ``z[b]`` as a unit of its own, as the authors do; ``"channel"`` takes
            the entries along `unit_dim` as the units, and their positions as further observations of the sample.
        reduction: ``"mean"`` over units, or ``"none"`` for one value a unit (first order).
        unit_dim: dimension of the units for ``unit="channel"``: 1 behind convolutions, -1 in transformers.
        max_sets: largest number of sets that are evaluated for order 3 and higher.
        seed: seed of the sample of sets.
        kwargs: further arguments of ``torchmetrics.Metric``.

    Raises:
        TypeError: if an argument that has to be an integer is none. In an update, if `z` is not a real floating point
            tensor or `target` of none of these types.
        ValueError: if an argument is not one of those allowed. In an update, if shapes do not match, `z` holds NaN, a
            class is out of range, the layer has fewer than `order` units or not as many as before.

    Example:
        The first unit is on in half of the samples of class 0, the second in a quarter; class 1 finds both always on.

        >>> import torch
        >>> metric = PSPEntropy(num_classes=2, reduction="none")
        >>> metric.update(torch.tensor([[1.0, 2.0], [0.5, -1.0]]), torch.tensor([0, 0]))
        >>> metric.update(torch.tensor([[-2.0, 0.0], [-1.0, -3.0], [4.0, 5.0]]), torch.tensor([0, 0, 1]))
        >>> metric.compute()  # 1 and -1/4·log2(1/4) - 3/4·log2(3/4)
        tensor([1.0000, 0.8113], dtype=torch.float64)
        >>> metric.classwise()
        tensor([[1.0000, 0.8113],
                [0.0000, 0.0000]], dtype=torch.float64)
    """

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
        self.unit: Unit = unit
        self.reduction: Reduction = reduction
        self.unit_dim = unit_dim
        self.max_sets = max_sets
        self.seed = seed
        self._is_in_forward = False
        self._warned: set[str] = set()
        self.add_state("units", torch.tensor(0), dist_reduce_fx="max")  # 0 before the first update
        if order == 1:
            # Zeros of one unit, which can be added to those of any number, until that number is known.
            self.add_state("active", torch.zeros(num_classes, 1, dtype=torch.int64), dist_reduce_fx="sum")
            self.add_state("samples", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        else:
            self.add_state("states", [], dist_reduce_fx="cat")
            self.add_state("classes", [], dist_reduce_fx="cat")

    def update(self, z: Tensor, target: Tensor) -> None:
        """Adds potentials ``[batch, …]`` and their classes ``[batch]``."""
        if not self._is_in_forward:
            self._check(z, target)
        units = count_units(z, self.unit, self.unit_dim)
        if self.order == 1:
            self._add_counts(units, _count_states(z, class_membership(target), self.unit, self.unit_dim))
        else:
            self._add_states(units, *_joint_entropy_update(z, target, self.unit, self.unit_dim))

    def add_counts(self, units: int, counts: ClassCounts) -> None:
        """Adds a batch that was counted elsewhere, of as many units as those before, to a metric of first order."""
        self._add_counts(units, counts)
        note_updates(self, 1)

    def add_states(self, units: int, states: Tensor, classes: Tensor) -> None:
        """The same for a metric of a higher order, by states packed in bits and the classes of observations."""
        self._add_states(units, states, classes)
        note_updates(self, 1)

    def forward(self, z: Tensor, target: Tensor) -> Tensor:
        """Adds a batch and returns the entropy of this batch alone."""
        self._check(z, target)  # against the units so far, of which the class above knows nothing while it updates
        self._is_in_forward = True
        try:
            value: Tensor = super().forward(z, target)
        finally:
            self._is_in_forward = False
        return value

    def compute(self) -> Tensor:
        """The entropy of all batches so far in bits: a scalar, or ``[units]`` for ``reduction="none"``."""
        if self.order > 1:
            value = self._estimate().value
            return torch.tensor(value, dtype=widest_float(self.device), device=self.device)
        self._warn_of_absent_classes()
        return _psp_entropy_reduce(_entropy_of_units(self.active, self.samples), self.reduction)

    def classwise(self) -> Tensor:
        """The entropy of each unit within each class in bits ``[num_classes, units]``, 0 in a class without samples.

        Raises:
            ValueError: if the metric is not of first order.
            TorchMetricsUserError: if there was no update.
        """
        if self.order != 1:
            raise ValueError(f"Expected a metric with `order=1` for values of units but got `order={self.order}`.")
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=synchronises(self)):
            units, active, samples = int(self.units), self.active, self.samples
            self._warn_of_absent_classes()
        if units == 0:
            raise TorchMetricsUserError("The number of units is not known before the first `update`.")
        return _psp_entropy_compute(active, samples)

    def estimate(self) -> EntropyEstimate:
        """The entropy with its standard error, the number of units or sets of units, and whether these are all."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=synchronises(self)):
            return self._estimate()

    def reset(self) -> None:
        """Forgets all batches."""
        if self.order > 1:
            # The class above empties these very lists, which others may have taken, as `torchmetrics.wrappers.Running`.
            self.states, self.classes = [], []
        super().reset()

    def sync(
        self,
        dist_sync_fn: Callable[..., Any] | None = None,
        process_group: Any | None = None,
        should_sync: bool = True,
        distributed_available: Callable[[], bool] | None = None,
    ) -> None:
        """Gathers the states of all processes; see ``torchmetrics.Metric.sync``."""
        is_distributed = (distributed_available or self.distributed_available_fn)()
        if should_sync and is_distributed and not is_synchronised(self):
            gathered = (dist_sync_fn or gather_all_tensors)(self.units, group=process_group or self.process_group)
            units = [int(found) for found in gathered if found > 0]
            for other in units[1:]:
                check_same_units(other, units[0], self.unit)
            if units and int(self.units) == 0:
                self._take_shape(units[0])
        sync_fn = dist_sync_fn or (_add_up_over_processes if self.order == 1 else None)
        super().sync(sync_fn, process_group, should_sync, distributed_available)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Adds the states of another metric; see ``torchmetrics.Metric.merge_state``."""
        if isinstance(incoming_state, PSPEntropy):
            # Which dimension holds the units matters for channels alone.
            for name in ("num_classes", "order", "unit", *(("unit_dim",) if self.unit == "channel" else ())):
                own, other = getattr(self, name), getattr(incoming_state, name)
                if own != other:
                    raise ValueError(f"Expected a metric with the same `{name}={own!r}`, but got {other!r}.")
        states: dict[str, Any] = incoming_state.metric_state if isinstance(incoming_state, Metric) else incoming_state
        if "units" in states and 0 not in (int(self.units), int(states["units"])):
            check_same_units(int(states["units"]), int(self.units), self.unit)
        super().merge_state(incoming_state)  # type: ignore[misc]  # the oldest version has none

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Plots a value or several, in bits; see ``torchmetrics.Metric.plot``."""
        of = {1: "a unit", 2: "a pair of units"}.get(self.order, f"a set of {self.order} units")
        return with_units(picture(self, val, ax), f"PSP-entropy (bits {of})")

    def _check(self, z: Tensor, target: Tensor) -> None:
        check_input(z, target, self.num_classes, self.unit, self.unit_dim)
        units = count_units(z, self.unit, self.unit_dim)
        check_enough_units(units, self.order)
        if int(self.units) > 0:
            check_same_units(units, int(self.units), self.unit)

    def _add_counts(self, units: int, counts: ClassCounts) -> None:
        if self.active.shape[1] != units:  # of nothing yet
            self.active = self.active.new_zeros(self.num_classes, units)
        elif self.active.is_inference() and not torch.is_inference_mode_enabled():
            self.active = self.active.clone()
        if self.samples.is_inference() and not torch.is_inference_mode_enabled():
            self.samples = self.samples.clone()
        _add_counts(self.active, self.samples, counts)
        self.units = torch.full_like(self.units, units)

    def _add_states(self, units: int, states: Tensor, classes: Tensor) -> None:
        self.states.append(states)
        self.classes.append(classes)
        self.units = torch.full_like(self.units, units)

    def _take_shape(self, units: int) -> None:
        """Gives the states of a process without samples the shapes that those of other processes have."""
        if self.order == 1:
            self.active = self.active.new_zeros(self.num_classes, units)
        else:
            self.states.append(torch.zeros(0, -(-units // 8), dtype=torch.uint8, device=self.device))
            self.classes.append(torch.zeros(0, dtype=torch.int32, device=self.device))

    def _estimate(self) -> EntropyEstimate:
        estimate = self.silent_estimate()
        self._warn_of_absent_classes()
        self._warn_once("sampling", sampling_message(self.order, estimate))
        return estimate

    def silent_estimate(self) -> EntropyEstimate:
        """:meth:`estimate` of this process's samples, without telling of absent classes and of sampling."""
        if int(self.units) == 0:
            return NO_ESTIMATE
        if self.order == 1:
            return exact_estimate(self.active, self.samples)
        return _joint_entropy_compute(
            dim_zero_cat(self.states),
            dim_zero_cat(self.classes),
            int(self.units),
            self.num_classes,
            self.order,
            self.max_sets,
            self.seed,
        )

    def class_sizes(self) -> Tensor:
        """The number of observations of each class in this process ``[num_classes]``."""
        if self.order == 1:
            return self.samples
        return torch.bincount(dim_zero_cat(self.classes), minlength=self.num_classes)

    def _warn_of_absent_classes(self) -> None:
        if int(self.units) > 0:
            self._warn_once("absent classes", absent_classes_message(self.class_sizes()))

    def _warn_once(self, subject: str, message: str | None) -> None:
        # A single batch seldom holds all classes, and nobody has asked for its error.
        if message is not None and subject not in self._warned and not self._is_in_forward:
            self._warned.add(subject)
            rank_zero_warn(message, UserWarning)


def _add_up_over_processes(counts: Tensor, group: Any | None = None) -> list[Tensor]:
    """The sum of counts, and the maximum of a number of units, without the memory for those of every process."""
    total = counts.clone()
    operation = torch.distributed.ReduceOp.MAX if counts.ndim == 0 else torch.distributed.ReduceOp.SUM
    torch.distributed.all_reduce(total, operation, group=group)
    return [total]
