"""PSP-entropy of second and higher order from the states of all observations."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_psp.functional.estimate import NO_ESTIMATE, EntropyEstimate
from lightning_psp.functional.pair_entropy import sum_over_pairs
from lightning_psp.functional.set_entropy import choose_sets, entropy_of_sets

DEFAULT_MAX_SETS = 10_000


def _joint_entropy_compute(
    packed: Tensor,
    classes: Tensor,
    units: int,
    num_classes: int,
    order: int,
    max_sets: int = DEFAULT_MAX_SETS,
    seed: int = 0,
) -> EntropyEstimate:
    """Mean over sets of `order` units, two or more, of their joint entropy in bits, summed over classes.

    Args:
        packed: states of the units in bits, uint8 ``[observations, ceil(units / 8)]``.
        classes: class of each observation, integers ``[observations]``.
        units: number of units, at least `order`.
        num_classes: number of classes.
        order: number of units of a set.
        max_sets: a sample of so many sets is taken where there are more, unless `order` is 2.
        seed: seed of the sample.
    """
    sizes = torch.bincount(classes, minlength=num_classes).tolist()
    parts = [part for part in torch.split(packed[classes.argsort()], sizes) if len(part) > 0]
    if not parts:
        return NO_ESTIMATE
    all_sets = math.comb(units, order)
    if order == 2:
        return EntropyEstimate(sum_over_pairs(parts, units) / all_sets, 0.0, all_sets, is_exact=True)
    sets = choose_sets(units, order, max_sets, seed)
    entropies = entropy_of_sets(parts, sets)
    is_exact = len(sets) == all_sets
    # The sample is drawn without replacement, so that its error vanishes as it grows to all sets.
    unseen = math.sqrt(1 - len(sets) / all_sets)
    error = 0.0 if is_exact else unseen * entropies.std().item() / math.sqrt(len(sets))
    return EntropyEstimate(entropies.mean().item(), error, len(sets), is_exact)
