"""Joint entropy of the states of pairs and larger sets of units."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributed import get_rank, is_available, is_initialized
from tqdm.auto import tqdm

from lightning_psp.functional.estimate import EntropyEstimate
from lightning_psp.functional.precision import widest_float
from lightning_psp.functional.validation import check_units

DEFAULT_MAX_SETS = 10_000
# Units of a block of pairs, a multiple of 8, and observations that are unpacked at a time.
BLOCK = 2048
OBSERVATIONS = 8192
# Rows of a block whose counts are looked up at a time, so that they stay in cache.
ROWS = 64
# float32 counts exactly up to here.
_LARGEST_COUNT = 2**24
# Joint states that are counted at a time.
_CHUNK = 2**22


def _joint_entropy_update(
    z: Tensor, target: Tensor, unit: str = "element", unit_dim: int = 1
) -> tuple[Tensor, Tensor, int]:
    """States of one batch.

    Returns:
        The states of the units packed in bits, uint8 ``[observations, ceil(units / 8)]``, the observations' classes,
        int32 ``[observations]``, and the number of units.
    """
    states = z > 0
    if z.ndim == 1:
        states = states.unsqueeze(1)
    elif unit == "channel":
        states = states.movedim(unit_dim, -1)
    classes = target.int()
    if unit == "channel" and z.ndim > 2:
        positions = states.shape[1:-1].numel()
        return pack_states(states.flatten(0, -2)), classes.repeat_interleave(positions), states.shape[-1]
    states = states.flatten(1)
    return pack_states(states), classes, states.shape[1]


def pack_states(states: Tensor) -> Tensor:
    """Packs states, bool ``[observations, units]``, into the bits of uint8 ``[observations, ceil(units / 8)]``."""
    rest = -states.shape[1] % 8
    groups = torch.nn.functional.pad(states, (0, rest)).view(torch.uint8).unflatten(1, (-1, 8))
    return (groups << torch.arange(8, dtype=torch.uint8, device=states.device)).sum(-1, dtype=torch.uint8)


def unpack_states(packed: Tensor, dtype: torch.dtype) -> Tensor:
    """The states ``[observations, 8 · bytes]`` in packed ones, as numbers 0 and 1."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    table = (torch.arange(256, dtype=torch.uint8, device=packed.device).unsqueeze(1) >> shifts & 1).to(dtype)
    return table.index_select(0, packed.flatten().int()).view(len(packed), -1)


def _joint_entropy_compute(
    packed: Tensor, classes: Tensor, units: int, num_classes: int, order: int, max_sets: int, seed: int
) -> EntropyEstimate:
    """Mean joint entropy over sets of `order` units, in bits, summed over classes."""
    check_units(units, order)
    number_of_sets = math.comb(units, order)
    sizes = torch.bincount(classes, minlength=num_classes).tolist()
    parts = [part for part in packed[classes.argsort()].split(sizes) if len(part)]
    if order == 2:
        total = sum(_sum_over_pairs(part, units) for part in parts)
        return EntropyEstimate(float(total) / number_of_sets, 0.0, number_of_sets, is_exact=True)
    raise NotImplementedError


def _entropy_table(size: int, device: torch.device) -> Tensor:
    """−p·log2 p of p = 0, 1/size, …, 1, by count: what a state seen so often among `size` adds to the entropy."""
    counts = torch.arange(size + 1, device=device)
    return torch.special.entr(counts.to(widest_float(device)) / size) / math.log(2)


def _sum_over_pairs(packed: Tensor, units: int) -> Tensor:
    """Sum of the joint entropies of all pairs of units over the observations of one class."""
    size, device = len(packed), packed.device
    table = _entropy_table(size, device)
    dtype = torch.float32 if size <= _LARGEST_COUNT else torch.float64
    starts = range(0, units, BLOCK)
    active = torch.cat([_count_block(packed, start, start, units, dtype).diagonal() for start in starts]).long()
    total = -(table[active] + table[size - active]).sum()
    for left, right in itertools.combinations_with_replacement(starts, 2):
        both = _count_block(packed, left, right, units, dtype)
        block = _sum_over_block(both, active[left : left + BLOCK], active[right : right + BLOCK], size, table)
        total += block if left == right else 2 * block
    return total / 2


def _count_block(packed: Tensor, left: int, right: int, units: int, dtype: torch.dtype) -> Tensor:
    """How often units of two blocks are active together ``[units of left, units of right]``."""
    count: Tensor | None = None
    with torch.autocast(packed.device.type, enabled=False):  # it would round the counts
        for part in packed.split(OBSERVATIONS):
            first = _unpack_block(part, left, units, dtype)
            second = first if left == right else _unpack_block(part, right, units, dtype)
            count = first.T @ second if count is None else count.addmm_(first.T, second)
    assert count is not None
    return count


def _unpack_block(packed: Tensor, start: int, units: int, dtype: torch.dtype) -> Tensor:
    stop = min(start + BLOCK, units)
    return unpack_states(packed[:, start // 8 : -(-stop // 8)], dtype)[:, : stop - start]


def _sum_over_block(both: Tensor, active_left: Tensor, active_right: Tensor, size: int, table: Tensor) -> Tensor:
    total = table.new_zeros(())
    right = active_right.int()
    for rows, left in zip(both.split(ROWS), active_left.int().split(ROWS), strict=True):
        on_on = rows.int()
        on_off = left.unsqueeze(1) - on_on
        off_on = right - on_on
        off_off = size - left.unsqueeze(1) - off_on
        for count in (on_on, on_off, off_on, off_off):
            total += table.index_select(0, count.flatten()).sum()
    return total
