"""PSP-entropy with graded states in place of binary ones, which a gradient can pass."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_psp.functional.arguments import check_number
from lightning_psp.functional.binary_entropy import binary_entropy
from lightning_psp.functional.precision import accumulation_dtype, widest_float
from lightning_psp.functional.validation import Reduction, Unit, check_arguments, check_input

# Samples that are added one after another in float32, which rounds a sum more the longer it is.
_ROWS = 256


def soft_psp_entropy(
    z: Tensor,
    target: Tensor,
    num_classes: int,
    *,
    temperature: float = 1.0,
    unit: Unit = "element",
    unit_dim: int = 1,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Differentiable relaxation of the PSP-entropy of a layer.

    The PSP-entropy of a unit (Tartaglione et al., 2020, Eq. 3 to 5) is the entropy of its state, 1 where z > 0 and 0
    elsewhere, over the samples of a class, summed over classes. Here the state is
    :math:`\sigma(z / T)` at the temperature T, so that the probability of state 1 of unit k among the
    :math:`n_c` samples of class c and the entropy of the unit are

    .. math::
        p_{k|c} = \frac{1}{n_c} \sum_{b \in c} \sigma\!\left(\frac{z_{b,k}}{T}\right), \qquad
        H_k = -\sum_c p_{k|c} \log_2 p_{k|c} + (1 - p_{k|c}) \log_2 (1 - p_{k|c}).

    As T falls, :math:`H_k` tends to the PSP-entropy, except for potentials that are exactly 0: their state is ½ at
    every temperature. At any T, the largest value (a bit a class) is also that of a unit whose potentials are all 0.

    Half precision is computed in float32. The gradient is finite: 0 where a probability is 0 or 1.

    Args:
        z: potentials ``[batch, …]`` of a layer.
        target: class labels ``[batch]`` of type uint8, int8, int16, int32 or int64, from 0 to `num_classes` − 1. A
            class without samples contributes nothing.
        num_classes: number of classes.
        temperature: T, in the unit of the potentials.
        unit: ``"element"``: every entry of a sample is a unit. ``"channel"``: every index of the dimension `unit_dim`
            is one, the other dimensions being further observations of it.
        unit_dim: the dimension of the channels; not used for ``"element"``.
        reduction: ``"mean"`` over units, or ``"none"``.

    Returns:
        The entropy in bits, with the graph of z: a scalar for ``"mean"``, ``[units]`` for ``"none"``.

    Raises:
        TypeError: if z is not a real floating point tensor, or `target` not one of those types.
        ValueError: if a shape, a label or another argument is outside what is allowed, or z holds NaN.

    Example:
        >>> z, target = torch.tensor([[5.0, 9.0], [-5.0, 9.0], [5.0, -9.0]]), torch.tensor([0, 0, 1])
        >>> soft_psp_entropy(z, target, 2, reduction="none").round(decimals=2)
        tensor([1.0600, 0.0000])
        >>> soft_psp_entropy(z, target, 2, temperature=0.1)
        tensor(0.5000)
    """
    check_arguments(num_classes, 1, unit, reduction, unit_dim, max_sets=2, seed=0)
    check_number("temperature", temperature, above=0)
    check_input(z, target, num_classes, unit, unit_dim)
    if len(z) == 0:
        raise ValueError(f"Expected argument `z` to hold at least one sample but got shape {[*z.shape]}.")
    states = torch.sigmoid(z.to(accumulation_dtype(z.dtype)) / temperature)
    if z.ndim > 2 and unit == "channel":
        states = states.movedim(unit_dim, -1).flatten(1, -2).mean(dim=1)
    counts = torch.bincount(target, minlength=num_classes)
    probabilities = class_sums(states, target, num_classes) / counts.clamp(min=1)[:, None]
    entropies = binary_entropy(probabilities).sum(dim=0)
    return entropies.mean() if reduction == "mean" else entropies


def class_sums(states: Tensor, labels: Tensor, number_of_classes: int) -> Tensor:
    """Sums over the samples of each class.

    Args:
        states: values ``[batch, …]``.
        labels: classes ``[batch]`` from 0 to `number_of_classes` − 1.
        number_of_classes: number of classes.

    Returns:
        The sums ``[number_of_classes, units]``.
    """
    states, labels = states.reshape(len(states), -1), labels.long()
    zeros = states.new_zeros(number_of_classes, states.shape[1])
    if len(states) <= _ROWS:
        return zeros.index_add(0, labels, states)
    total = zeros.to(widest_float(states.device))
    for part, part_labels in zip(states.split(_ROWS), labels.split(_ROWS), strict=True):
        total = total + zeros.index_add(0, part_labels, part)
    return total.to(states.dtype)
