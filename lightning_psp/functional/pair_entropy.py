"""Joint entropy of all pairs of units of a layer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_psp.functional.binary_entropy import LARGEST_COUNT, entropy_table
from lightning_psp.functional.precision import widest_float
from lightning_psp.functional.progress import progress_bar
from lightning_psp.functional.states import unpack_states

# Units whose pairs are counted in one product, a multiple of 8.
BLOCK = 2048
# Rows of a block that are looked up at a time: the counts stay in cache, and a call is still long.
ROWS = 256
# Observations that are unpacked at a time.
OBSERVATIONS = 8192
# bfloat16 holds every integer up to here.
LARGEST_BFLOAT16_COUNT = 256


def sum_over_pairs(parts: Sequence[Tensor], units: int) -> float:
    """Sum over all pairs of units of their joint entropy in bits, summed over classes.

    How often both units of a pair are active is a product of matrices of 0 and 1, taken block by block. With the
    number of observations and how often each unit is active it gives the counts of the other three states.

    Args:
        parts: for each class the packed states of its observations, uint8 ``[observations, bytes]``, at least one.
        units: number of units.
    """
    blocks = list(itertools.combinations_with_replacement(range(0, units, BLOCK), 2))
    total = 0.0
    with progress_bar(len(parts) * units * units, "pair") as progress:
        for packed in parts:
            size = len(packed)
            table = entropy_table(size, packed.device)
            active = _count_active(packed, units)
            # Blocks on the diagonal hold every pair twice, and every unit with itself.
            twice = -(table[active] + table[size - active]).sum()
            for left, right in blocks:
                together = _count_together(packed, left, right, units)
                rows, columns = active[left : left + BLOCK], active[right : right + BLOCK]
                weight = 1 if left == right else 2
                twice += weight * _sum_over_block(together, rows, columns, size, table)
                progress.update(weight * together.numel())
            total += twice.item() / 2
    return total


def _count_active(packed: Tensor, units: int) -> Tensor:
    """How often each unit is active, int32 ``[units]``."""
    counts = [
        unpack_states(part, torch.int32).sum(0, dtype=torch.int32)
        for part in torch.split(packed, LARGEST_BFLOAT16_COUNT)
    ]
    return torch.stack(counts).sum(0, dtype=torch.int32)[:units]


def _count_together(packed: Tensor, left: int, right: int, units: int) -> Tensor:
    """How often units of two blocks are active together, exact ``[units of left, units of right]``."""
    # Processors with AVX-512 multiply bfloat16 several times faster than float32, or not much slower.
    halves = packed.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512"
    dtype, observations = (torch.bfloat16, LARGEST_BFLOAT16_COUNT) if halves else (torch.float32, OBSERVATIONS)
    shape = min(BLOCK, units - left), min(BLOCK, units - right)
    wide = torch.float32 if len(packed) <= LARGEST_COUNT else widest_float(packed.device)
    together = torch.zeros(shape, dtype=wide, device=packed.device)
    with torch.autocast(packed.device.type, enabled=False):  # it would round the counts
        for part in torch.split(packed, observations):
            first = _unpack_block(part, left, units, dtype)
            second = first if left == right else _unpack_block(part, right, units, dtype)
            together += first.T @ second
    return together


def _unpack_block(packed: Tensor, start: int, units: int, dtype: torch.dtype) -> Tensor:
    stop = min(start + BLOCK, units)
    return unpack_states(packed[:, start // 8 : -(-stop // 8)], dtype)[:, : stop - start]


def _sum_over_block(together: Tensor, left: Tensor, right: Tensor, size: int, table: Tensor) -> Tensor:
    """Sum of the joint entropies of the pairs of a block."""
    total = table.new_zeros(())
    counts = torch.empty(4, min(ROWS, len(left)), len(right), dtype=torch.int32, device=table.device)
    for rows, row_active in zip(torch.split(together, ROWS), torch.split(left.unsqueeze(1), ROWS), strict=True):
        both, first, second, neither = counts[:, : len(rows)]
        both.copy_(rows)
        torch.sub(row_active, both, out=first)
        torch.sub(right, both, out=second)
        torch.sub(size - row_active, second, out=neither)
        total += table.index_select(0, counts[:, : len(rows)].flatten()).sum()
    return total
