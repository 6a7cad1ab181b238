"""PSP-entropy: how evenly the units of a layer are on and off within each class."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from lightning_psp.functional.estimate import EntropyEstimate
from lightning_psp.functional.joint_entropy import DEFAULT_MAX_SETS, _joint_entropy_compute, _joint_entropy_update
from lightning_psp.functional.precision import widest_float
from lightning_psp.functional.validation import Reduction, Unit, check_arguments, check_input

# float32 counts exactly up to here.
_LARGEST_COUNT = 2**24
# Numbers in the temporaries of a sum over classes.
_CHUNK = 2**22


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
    """PSP-entropy (docstring follows)."""
    check_arguments(num_classes, order, unit, reduction, unit_dim, max_sets, seed)
    check_input(z, target, num_classes, unit, unit_dim)
    if order > 1:
        estimate = estimate_psp_entropy(
            z, target, num_classes, order, unit, unit_dim=unit_dim, max_sets=max_sets, seed=seed
        )
        if not estimate.is_exact:
            warnings.warn(sampling_message(order, estimate), stacklevel=2)
        return torch.tensor(estimate.value, dtype=widest_float(z.device), device=z.device)
    active, samples = _psp_entropy_update(z, target, num_classes, unit, unit_dim)
    _warn_of_absent_classes(samples)
    return _psp_entropy_reduce(_entropy_of_units(active, samples), reduction)


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
    """PSP-entropy with its standard error (docstring follows)."""
    check_arguments(num_classes, order, unit, "mean", unit_dim, max_sets, seed)
    check_input(z, target, num_classes, unit, unit_dim)
    if order == 1:
        active, samples = _psp_entropy_update(z, target, num_classes, unit, unit_dim)
        _warn_of_absent_classes(samples)
        return exact_estimate(_entropy_of_units(active, samples))
    states, classes, units = _joint_entropy_update(z, target, unit, unit_dim)
    _warn_of_absent_classes(torch.bincount(classes, minlength=num_classes))
    return _joint_entropy_compute(states, classes, units, num_classes, order, max_sets, seed)


def _psp_entropy_update(
    z: Tensor, target: Tensor, num_classes: int, unit: Unit = "element", unit_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """Counts of one batch.

    Returns:
        How many of a class's observations found each unit active, int64 ``[num_classes, units]``, and the number of
        the class's observations, int64 ``[num_classes]``.
    """
    units = count_units(z, unit, unit_dim)
    active = torch.zeros(num_classes, units, dtype=torch.int64, device=z.device)
    samples = torch.zeros(num_classes, dtype=torch.int64, device=z.device)
    _add_counts(active, samples, z, target, unit, unit_dim)
    return active, samples


def _add_counts(
    active: Tensor, samples: Tensor, z: Tensor, target: Tensor, unit: Unit = "element", unit_dim: int = 1
) -> None:
    """Adds the counts of one batch to those of others in place: only the rows of classes in the batch are written."""
    present, rows, sizes = target.unique(return_inverse=True, return_counts=True)
    if len(present) == 0:
        return
    present = present.long()
    positions = z.numel() // (len(z) * active.shape[1])
    dtype = torch.float32 if len(z) * positions <= _LARGEST_COUNT else torch.float64
    if unit == "element" or z.ndim <= 2:
        states = torch.gt(z, 0, out=torch.empty(z.shape, dtype=dtype, device=z.device)).flatten(1)
        if z.ndim == 1:
            states = states.unsqueeze(1)
    else:
        dims = [dim for dim in range(1, z.ndim) if dim != unit_dim % z.ndim]
        states = (z > 0).sum(dims, dtype=dtype)
    membership = torch.zeros(len(present), len(z), dtype=dtype, device=z.device)
    membership.scatter_(0, rows.unsqueeze(0), 1.0)
    with torch.autocast(z.device.type, enabled=False):  # it would round the counts
        counts = membership @ states
    active.index_add_(0, present, counts.long())
    samples.index_add_(0, present, sizes * positions)


def count_units(z: Tensor, unit: Unit, unit_dim: int) -> int:
    """The number of neurons in potentials ``[batch, …]``; 1 for a vector of outputs."""
    if z.ndim == 1:
        return 1
    return z.shape[1:].numel() if unit == "element" else z.shape[unit_dim]


def _psp_entropy_compute(active: Tensor, samples: Tensor) -> Tensor:
    """Binary entropies in bits.

    Args:
        active: counts ``[classes, units]``.
        samples: counts ``[classes]``.

    Returns:
        Entropy of each unit within each class ``[classes, units]``, 0 in a class without samples.
    """
    dtype = widest_float(active.device)
    sizes = samples.clamp(min=1).to(dtype).unsqueeze(1)
    entropy = torch.special.entr(active / sizes)
    entropy += torch.special.entr((samples.unsqueeze(1) - active) / sizes)
    return entropy / math.log(2)


def _entropy_of_units(active: Tensor, samples: Tensor) -> Tensor:
    """Entropy of each unit ``[units]``, summed over classes."""
    rows = max(1, _CHUNK // active.shape[1])
    parts = zip(active.split(rows), samples.split(rows), strict=True)
    return torch.stack([_psp_entropy_compute(part, sizes).sum(0) for part, sizes in parts]).sum(0)


def _psp_entropy_reduce(entropy: Tensor, reduction: Reduction) -> Tensor:
    return entropy.mean() if reduction == "mean" else entropy


def exact_estimate(entropy: Tensor) -> EntropyEstimate:
    """First-order PSP-entropy of units ``[units]`` as an estimate without error."""
    return EntropyEstimate(entropy.mean().item(), 0.0, len(entropy), is_exact=True)


def absent_classes_message(samples: Tensor) -> str | None:
    """What to tell of classes without samples, None where all have some."""
    absent = (samples == 0).nonzero().flatten().tolist()
    if not absent:
        return None
    return f"PSP-entropy found no sample of {len(absent)} of {len(samples)} classes: {absent}. They contribute nothing."


def sampling_message(order: int, estimate: EntropyEstimate) -> str:
    """What to tell of a value that comes from a sample of sets."""
    return (
        f"PSP-entropy of order {order} is the mean over a random sample of {estimate.number_of_sets} sets of units,"
        f" with standard error {estimate.standard_error:.2g}. Raise `max_sets` for more."
    )


def _warn_of_absent_classes(samples: Tensor) -> None:
    message = absent_classes_message(samples)
    if message is not None:
        warnings.warn(message, stacklevel=3)
