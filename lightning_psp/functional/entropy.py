"""PSP-entropy: how evenly the units of a layer are on and off within each class."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_psp.functional.binary_entropy import LARGEST_COUNT, entropy_term
from lightning_psp.functional.estimate import NO_ESTIMATE, EntropyEstimate
from lightning_psp.functional.joint_entropy import DEFAULT_MAX_SETS, _joint_entropy_compute
from lightning_psp.functional.memory_order import memory_order
from lightning_psp.functional.precision import widest_float
from lightning_psp.functional.states import _joint_entropy_update, states_of
from lightning_psp.functional.validation import (
    Reduction,
    Unit,
    check_arguments,
    check_enough_units,
    check_input,
    count_units,
)
from lightning_psp.torch_private.products import multiplies_bytes, multiply_bytes

# Entropies that are held at a time in a sum over classes.
_CHUNK = 2**22
# States of numbers that fit into the cache of a processor.
_CACHED = 2**19
# Products of float32 may be taken in bfloat16, as users can ask for, which holds every integer up to here.
_LARGEST_FACTOR = 2**8


def psp_entropy(
    z: Tensor,
    target: Tensor,
    num_classes: int,
    order: int = 1,
    unit: Unit = "element",
    reduction: Reduction = "mean",
    *,
    unit_dim: int = 1,
    max_sets: int = DEFAULT_MAX_SETS,
    seed: int = 0,
) -> Tensor:
    r"""PSP-entropy of a layer: how evenly its units are on and off within each class.

    The state of a unit is 1 where its potential z > 0, else 0. With :math:`p_{k,c}` the part of the samples of class c
    that find unit k in state 1, first order (Tartaglione et al., 2020, Eq. 3 to 5) is the mean over units of

    .. math:: H(z_k) = \sum_c H(z_k|c), \qquad
              H(z_k|c) = -p_{k,c} \log_2 p_{k,c} - (1 - p_{k,c}) \log_2 (1 - p_{k,c})

    with 0·log 0 = 0. Order n is the mean over all sets of n units of one layer of the joint entropy of their 2ⁿ states,
    again summed over classes. Second order is exact over all pairs. Higher orders are exact where there are at most
    `max_sets` sets; otherwise the value is that of a sample of `max_sets` different ones, and a warning tells its
    standard error, which :func:`estimate_psp_entropy` returns.

    Args:
        z: potentials ``[batch, …]`` in any floating point type, ``[batch]`` for a single unit. Infinities have a state.
        target: classes ``[batch]`` of type uint8, int8, int16, int32 or int64, from 0 to `num_classes` - 1. A class
            without samples contributes nothing, and is named in a warning.
        num_classes: number of classes.
        order: number of units whose joint state is looked at, 1 to 62.
        unit: ``"element"`` takes every entry of ``z[b]`` as a unit of its own, as the authors do; ``"channel"`` takes
            the entries along `unit_dim` as the units, and their positions as further observations of the sample.
        reduction: ``"mean"`` over units, or ``"none"`` for one value a unit (first order).
        unit_dim: dimension of the units for ``unit="channel"``: 1 behind convolutions, -1 in transformers.
        max_sets: largest number of sets that are evaluated for order 3 and higher.
        seed: seed of the sample of sets.

    Returns:
        Bits, a scalar from 0 to ``order · num_classes``, or ``[units]`` for ``reduction="none"``, in float64 (float32
        on devices without it). NaN for an empty batch.

    Raises:
        TypeError: if `z` is not a real floating point tensor, `target` is of none of these types, or a number is no
            integer.
        ValueError: if shapes do not match, `z` holds NaN, a class is out of range, an argument is not one of those
            allowed, or the layer has fewer than `order` units.

    Example:
        Two units and four samples of a single class. The first unit is on in two of them, the second in one; together
        they are on-on in one, on-off in one and off-off in two.

        >>> import torch
        >>> z = torch.tensor([[1.0, 2.0], [0.5, -1.0], [-2.0, 0.0], [-1.0, -3.0]])
        >>> target = torch.tensor([0, 0, 0, 0])
        >>> psp_entropy(z, target, num_classes=1, reduction="none")  # 1 and -1/4·log2(1/4) - 3/4·log2(3/4)
        tensor([1.0000, 0.8113], dtype=torch.float64)
        >>> psp_entropy(z, target, num_classes=1)
        tensor(0.9056, dtype=torch.float64)
        >>> psp_entropy(z, target, num_classes=1, order=2)  # 1/4·2 + 1/4·2 + 1/2·1
        tensor(1.5000, dtype=torch.float64)
    """
    check_arguments(num_classes, order, unit, reduction, unit_dim, max_sets, seed)
    check_input(z, target, num_classes, unit, unit_dim)
    if order == 1:
        active, samples = _psp_entropy_update(z, target, num_classes, unit, unit_dim)
        _warn(absent_classes_message(samples))
        return _psp_entropy_reduce(_entropy_of_units(active, samples), reduction)
    estimate, samples = _joint_entropy(z, target, num_classes, order, unit, unit_dim, max_sets, seed)
    _warn(absent_classes_message(samples))
    _warn(sampling_message(order, estimate))
    return torch.tensor(estimate.value, dtype=widest_float(z.device), device=z.device)


def estimate_psp_entropy(
    z: Tensor,
    target: Tensor,
    num_classes: int,
    order: int = 1,
    unit: Unit = "element",
    *,
    unit_dim: int = 1,
    max_sets: int = DEFAULT_MAX_SETS,
    seed: int = 0,
) -> EntropyEstimate:
    """PSP-entropy of a layer with its standard error, and whether it is exact.

    The same as :func:`psp_entropy`, for those who want to know how good a sample of sets is. The sample is drawn
    without replacement; its standard error is that of a mean of S out of N sets, s·√((1 - S/N)/S), with s the standard
    deviation over the sets drawn.

    Args:
        z: potentials ``[batch, …]``.
        target: classes ``[batch]``.
        num_classes: number of classes.
        order: number of units whose joint state is looked at, 1 to 62.
        unit: ``"element"`` or ``"channel"``.
        unit_dim: dimension of the units for ``unit="channel"``.
        max_sets: largest number of sets that are evaluated for order 3 and higher.
        seed: seed of the sample of sets.

    Returns:
        Value and standard error in bits, the number of sets of units evaluated, and whether they are all.

    Raises:
        TypeError: as :func:`psp_entropy`.
        ValueError: as :func:`psp_entropy`.

    Example:
        Three units, the third always as the first: any three samples that differ have log2(3) bits.

        >>> import torch
        >>> z = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 1.0], [-1.0, -1.0, -1.0]])
        >>> estimate_psp_entropy(z, torch.tensor([0, 0, 0]), num_classes=1, order=3)
        EntropyEstimate(value=1.584962500721156, standard_error=0.0, number_of_sets=1, is_exact=True)
    """
    check_arguments(num_classes, order, unit, "mean", unit_dim, max_sets, seed)
    check_input(z, target, num_classes, unit, unit_dim)
    if order == 1:
        active, samples = _psp_entropy_update(z, target, num_classes, unit, unit_dim)
        estimate = exact_estimate(active, samples)
    else:
        estimate, samples = _joint_entropy(z, target, num_classes, order, unit, unit_dim, max_sets, seed)
    _warn(absent_classes_message(samples))
    return estimate


def _joint_entropy(
    z: Tensor, target: Tensor, num_classes: int, order: int, unit: Unit, unit_dim: int, max_sets: int, seed: int
) -> tuple[EntropyEstimate, Tensor]:
    """The estimate for one batch, and the number of samples of each class."""
    units = count_units(z, unit, unit_dim)
    check_enough_units(units, order)
    packed, classes = _joint_entropy_update(z, target, unit, unit_dim)
    estimate = _joint_entropy_compute(packed, classes, units, num_classes, order, max_sets, seed)
    return estimate, torch.bincount(classes, minlength=num_classes)


def _psp_entropy_update(
    z: Tensor, target: Tensor, num_classes: int, unit: Unit = "element", unit_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """Counts of one batch.

    Returns:
        In how many observations of a class each unit is active, int64 ``[num_classes, units]``, and the number of
        observations of each class, int64 ``[num_classes]``.
    """
    units = count_units(z, unit, unit_dim)
    active = torch.zeros(num_classes, units, dtype=torch.int64, device=z.device)
    samples = torch.zeros(num_classes, dtype=torch.int64, device=z.device)
    _add_counts(active, samples, _count_states(z, class_membership(target), unit, unit_dim))
    return active, samples


class Membership(NamedTuple):
    """Which class each sample of a batch belongs to.

    Args:
        classes: the classes that occur, in ascending order, int64 ``[present]``.
        rows: for each sample the place of its class among them ``[batch]``.
        sizes: the number of samples of each of them, int64 ``[present]``.
    """

    classes: Tensor
    rows: Tensor
    sizes: Tensor


def class_membership(target: Tensor) -> Membership:
    """Which class each sample belongs to, from the class labels ``[batch]``."""
    present, rows, sizes = torch.unique(target, return_inverse=True, return_counts=True)
    return Membership(present.long(), rows, sizes)


class ClassCounts(NamedTuple):
    """Counts of one batch, of the classes that occur in it.

    Args:
        classes: the classes, in ascending order, int64 ``[present]``.
        active: in how many observations of each of them each unit is active, whole numbers ``[present, units]``.
        samples: the number of observations of each of them, int64 ``[present]``.
    """

    classes: Tensor
    active: Tensor
    samples: Tensor


def _count_states(z: Tensor, membership: Membership, unit: Unit = "element", unit_dim: int = 1) -> ClassCounts:
    """Counts the states of one batch by class."""
    units = count_units(z, unit, unit_dim)
    if len(z) == 0:
        nothing = torch.zeros(0, dtype=torch.int64, device=z.device)
        return ClassCounts(nothing, nothing.new_zeros(0, units), nothing)
    positions = z.numel() // (len(z) * units)
    has_states = unit == "element" or z.ndim <= 2  # one of each unit in a sample
    # To bring the counts into order takes less than to bring the states there.
    dims = memory_order(z, leading=1) if has_states else None
    values = z if dims is None else z.permute(dims)
    if has_states and multiplies_bytes(z.device):
        states = states_of(values).reshape(len(z), -1)
        counts = multiply_bytes(_members(membership, torch.int8), states)
    else:
        is_exact = len(z) * positions <= LARGEST_COUNT and (has_states or positions <= _LARGEST_FACTOR)
        dtype = torch.float32 if is_exact else widest_float(z.device)
        if has_states and _adds_rows(z.device):
            counts = _add_up_states(values, membership, dtype)
        else:
            if has_states:
                states = torch.gt(values, 0, out=torch.empty(values.shape, dtype=dtype, device=z.device))
            else:
                others = [dim for dim in range(1, z.ndim) if dim != unit_dim % z.ndim]
                states = states_of(z).sum(others, dtype=dtype)
            with torch.autocast(z.device.type, enabled=False):  # it would round the counts
                counts = _members(membership, dtype) @ states.view(len(z), -1)
    if dims is not None and not z.is_contiguous():
        counts = counts.view(-1, *values.shape[1:]).permute([dims.index(dim) for dim in range(z.ndim)]).flatten(1)
    return ClassCounts(membership.classes, counts, membership.sizes * positions)


def _adds_rows(device: torch.device) -> bool:
    """Whether states are added up class by class, and not multiplied by a matrix, as on an accelerator.

    There, the many samples of a class would wait for each other.
    """
    return device.type == "cpu"


def _add_up_states(values: Tensor, membership: Membership, dtype: torch.dtype) -> Tensor:
    """In how many samples of each class the values ``[batch, …]`` are positive, ``[present, units]``.

    The samples are gone through in parts whose states stay in the cache of a processor.
    """
    units = values[0].numel()
    counts = torch.zeros(len(membership.classes), units, dtype=dtype, device=values.device)
    samples = max(1, _CACHED // units)
    states = torch.empty(min(samples, len(values)), *values.shape[1:], dtype=dtype, device=values.device)
    for part, rows in zip(values.split(samples), membership.rows.split(samples), strict=True):
        counts.index_add_(0, rows, torch.gt(part, 0, out=states[: len(part)]).view(len(part), -1))
    return counts


def _members(membership: Membership, dtype: torch.dtype) -> Tensor:
    """For each class and sample, 1 where the sample is of the class, else 0 ``[present, batch]``."""
    rows = membership.rows
    members = torch.zeros(len(membership.classes), len(rows), dtype=dtype, device=rows.device)
    return members.scatter_(0, rows.unsqueeze(0), 1)


def _add_counts(active: Tensor, samples: Tensor, counts: ClassCounts) -> None:
    """Adds the counts of one batch to others in place; only the rows of classes in the batch are touched."""
    if len(counts.classes) == len(active):  # all classes, in order
        active += counts.active.long()
    else:
        active.index_add_(0, counts.classes, counts.active.long())
    samples.index_add_(0, counts.classes, counts.samples)


def _psp_entropy_compute(active: Tensor, samples: Tensor) -> Tensor:
    """Binary entropies in bits.

    Args:
        active: in how many observations of a class each unit is active, integers ``[classes, units]``.
        samples: number of observations of each class, integers ``[classes]``.

    Returns:
        Entropy of each unit within each class ``[classes, units]``, 0 in a class without samples.
    """
    size = samples.unsqueeze(1)
    divisor = size.clamp(min=1).to(widest_float(active.device))
    return entropy_term(active / divisor) + entropy_term((size - active) / divisor)


def _entropy_of_units(active: Tensor, samples: Tensor) -> Tensor:
    """Entropy of each unit in bits, summed over classes ``[units]``; NaN where there are no samples at all."""
    classes = max(1, _CHUNK // active.shape[1])
    parts = zip(torch.split(active, classes), torch.split(samples, classes), strict=True)
    entropy = torch.stack([_psp_entropy_compute(counts, sizes).sum(0) for counts, sizes in parts]).sum(0)
    return torch.where(samples.sum() > 0, entropy, torch.nan)


def _psp_entropy_reduce(entropy: Tensor, reduction: Reduction) -> Tensor:
    return entropy.mean() if reduction == "mean" else entropy


def exact_estimate(active: Tensor, samples: Tensor) -> EntropyEstimate:
    """PSP-entropy of first order as an estimate without error."""
    if not samples.any():
        return NO_ESTIMATE
    return EntropyEstimate(_entropy_of_units(active, samples).mean().item(), 0.0, active.shape[1], is_exact=True)


def absent_classes_message(samples: Tensor) -> str | None:
    """What to tell of classes without samples, None where every class has some."""
    absent = (samples == 0).nonzero().flatten().tolist()
    if not absent:
        return None
    return f"PSP-entropy has no samples of {len(absent)} of {len(samples)} classes, which add nothing to it: {absent}."


def sampling_message(order: int, estimate: EntropyEstimate) -> str | None:
    """What to tell of a value that comes from a sample of sets, None where it is exact."""
    if estimate.is_exact or estimate.number_of_sets == 0:
        return None
    return (
        f"PSP-entropy of order {order} is the mean over a random sample of {estimate.number_of_sets} sets of units,"
        f" standard error {estimate.standard_error:.2g} bits. With a larger `max_sets` it is smaller."
    )


def _warn(message: str | None) -> None:
    if message is not None:
        warnings.warn(message, stacklevel=3)
