"""Joint entropy of all pairs of units of a layer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from lightning_psp.functional.binary_entropy import LARGEST_COUNT, entropy_table
from lightning_psp.functional.precision import widest_float
from lightning_psp.functional.progress import progress_bar
from lightning_psp.functional.states import unpack_states

# Units whose pairs are counted in one product, a multiple of 8.
BLOCK = 1024
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
    with _side_by_side(parts[0].device) as map_blocks, progress_bar(len(parts) * units * units, "pair") as progress:
        for packed in parts:
            table = entropy_table(len(packed), packed.device)
            active = _count_active(packed, units)
            # Blocks on the diagonal hold every pair twice, and every unit with itself.
            twice = -(table[active] + table[len(packed) - active]).sum().item()
            sums = map_blocks(partial(_sum_over_block, packed=packed, active=active, table=table), blocks)
            for (left, right), block_sum in zip(blocks, sums, strict=True):
                weight = 1 if left == right else 2
                twice += weight * block_sum
                progress.update(weight * len(active[left : left + BLOCK]) * len(active[right : right + BLOCK]))
            total += twice / 2
    return total


@contextmanager
def _side_by_side(device: torch.device) -> Iterator[Callable[..., Iterator[float]]]:
    """Gives what maps a function over blocks; on a processor, as many at a time as torch has threads.

    Each block has one thread: its operations are short, and threads that share one wait for each other at its end.
    """
    if device.type != "cpu":
        yield map
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of threads that start from now on, too
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)


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


def _sum_over_block(block: tuple[int, int], packed: Tensor, active: Tensor, table: Tensor) -> float:
    """Sum of the joint entropies of the pairs of a unit from one block and a unit from another.

    Args:
        block: the first unit of each.
        packed: states of one class ``[observations, bytes]``.
        active: how often each unit is active ``[units]``.
        table: what a count adds to the entropy, by count.
    """
    left, right = block
    together = _count_together(packed, left, right, len(active))
    rows, columns = active[left : left + BLOCK], active[right : right + BLOCK]
    total = table.new_zeros(())
    counts = torch.empty(min(ROWS, len(rows)), 4, len(columns), dtype=torch.int32, device=table.device)
    terms = table.new_empty(counts.numel())  # taken once: memory that is new to the process is slow
    for part, row in zip(torch.split(together, ROWS), torch.split(rows.unsqueeze(1), ROWS), strict=True):
        states = counts[: len(part)]
        both, first, second, neither = states.unbind(1)
        both.copy_(part)
        torch.sub(row, both, out=first)
        torch.sub(columns, both, out=second)
        torch.sub(len(packed) - row, second, out=neither)
        total += torch.index_select(table, 0, states.flatten(), out=terms[: states.numel()]).sum()
    return total.item()
