"""Joint entropy of sets of several units."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_psp.functional.binary_entropy import entropy_table
from lightning_psp.functional.progress import progress_bar
from lightning_psp.functional.states import states_of_units

# Joint states that are held at a time.
_CHUNK = 2**22


def choose_sets(units: int, order: int, max_sets: int, seed: int) -> list[tuple[int, ...]]:
    """All sets of `order` units where there are at most `max_sets`, else so many different ones drawn at random.

    Example:
        >>> choose_sets(units=4, order=3, max_sets=10, seed=0)
        [(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)]
        >>> len(choose_sets(units=1000, order=3, max_sets=10, seed=0))
        10
    """
    if math.comb(units, order) <= max_sets:
        return list(itertools.combinations(range(units), order))
    generator = random.Random(seed)
    chosen: set[tuple[int, ...]] = set()
    while len(chosen) < max_sets:
        chosen.add(tuple(sorted(generator.sample(range(units), order))))
    return sorted(chosen)


def entropy_of_sets(parts: Sequence[Tensor], sets: Sequence[tuple[int, ...]]) -> Tensor:
    """Joint entropy of each set of units in bits, summed over classes ``[sets]``.

    Args:
        parts: for each class the packed states of its observations, uint8 ``[observations, bytes]``, at least one.
        sets: sets of units, all of the same size.
    """
    units_of_sets = torch.tensor(sets, device=parts[0].device)
    classwise = []
    with progress_bar(len(parts) * len(sets), "set") as progress:
        for packed in parts:
            columns = packed.T.contiguous()
            table = entropy_table(len(packed), packed.device)
            entropies = []
            for units in torch.split(units_of_sets, max(1, _CHUNK // len(packed))):
                entropies.append(_entropy_of_codes(_joint_states(columns, units), units.shape[1], table))
                progress.update(len(units))
            classwise.append(torch.cat(entropies))
    return torch.stack(classwise).sum(0)


def _joint_states(columns: Tensor, units: Tensor) -> Tensor:
    """The joint state of each set as a number whose bits are the states of its units ``[sets, observations]``."""
    codes = torch.zeros(len(units), columns.shape[1], dtype=torch.int64, device=columns.device)
    for unit in units.unbind(1):
        codes.mul_(2).add_(states_of_units(columns, unit))
    return codes


def _entropy_of_codes(codes: Tensor, order: int, table: Tensor) -> Tensor:
    """Entropy of each row of joint states ``[sets]``."""
    sets, observations = codes.shape
    if 2**order <= observations:  # else most states are never seen
        rows = torch.arange(sets, device=codes.device).unsqueeze(1) << order
        counts = torch.bincount((codes + rows).flatten(), minlength=sets << order)
        return table[counts].view(sets, -1).sum(1)
    ordered = codes.sort(1).values
    is_last = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[:, 1:], ordered[:, :-1], out=is_last[:, :-1])
    ends = is_last.flatten().nonzero().flatten()
    lengths = ends.diff(prepend=ends.new_full((1,), -1))
    terms = table.new_zeros(sets, observations)
    terms[is_last] = table[lengths]
    return terms.sum(1)
