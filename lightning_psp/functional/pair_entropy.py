"""Joint entropy of all pairs of units of a layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_psp.functional.binary_entropy import LARGEST_COUNT, entropy_table
from lightning_psp.functional.pair_lookup import CountedInPairs, SinglyCounted
from lightning_psp.functional.precision import widest_float
from lightning_psp.functional.progress import progress_bar
from lightning_psp.functional.states import count_active, pack_states, unpack_states
from lightning_psp.torch_private.products import multiplies_bytes, multiply_bytes

# Units whose pairs are counted in one product, multiples of 8: on a processor, and on an accelerator, which would wait
# for the calls of smaller ones.
BLOCK = 1024
WIDE_BLOCK = 2048
# Rows of a block that a processor looks up at a time: the counts stay in cache, and a call is still long. An
# accelerator, which would wait for the calls, looks up all.
ROWS = 64
# Observations that are unpacked at a time, a multiple of 8.
OBSERVATIONS = 8192
# Values of the tables by which states are looked up in pairs: 128 MiB.
LARGEST_TABLES = 2**24


def sum_over_pairs(parts: Sequence[Tensor], units: int) -> float:
    """Sum over all pairs of units of their joint entropy in bits, summed over classes.

    Units that are active in the same observations of a class have the same entropies: each pair of such patterns is
    counted once, and weighs as much as it has pairs of units. How often both of a pair are active is a product of
    matrices of 0 and 1, taken block by block. With the number of observations and how often each is active it gives the
    counts of the other three states.

    Args:
        parts: for each class the packed states of its observations, uint8 ``[observations, bytes]``, at least one.
        units: number of units.
    """
    total, width = 0.0, BLOCK if parts[0].is_cpu else WIDE_BLOCK
    with _side_by_side(parts[0].device) as map_tasks, progress_bar(len(parts) * units * units, "pair") as progress:
        found_patterns = map_tasks(partial(_find_patterns, units=units, width=width), parts)
        for packed, (patterns, active, numbers) in zip(parts, found_patterns, strict=True):
            table = entropy_table(len(packed), packed.device)
            weights = numbers.to(table.dtype)
            rules = _rules(active, table, width)
            blocks = list(itertools.combinations_with_replacement(range(0, len(patterns), width), 2))
            block_sum = partial(
                _sum_over_block,
                patterns=patterns,
                active=active,
                weights=weights,
                rules=rules,
                width=width,
            )
            in_block = torch.stack([part.sum() for part in torch.split(numbers, width)]).tolist()
            # Blocks on the diagonal hold every pair twice, and every unit with itself.
            sums = [-(weights @ (table[active] + table[len(packed) - active]))]
            # A single block is not worth the time of handing it to another thread.
            found_sums = map_tasks(block_sum, blocks) if len(blocks) > 1 else map(block_sum, blocks)
            for (left, right), found in zip(blocks, found_sums, strict=True):
                times = 1 if left == right else 2
                sums.append(times * found)
                progress.update(times * in_block[left // width] * in_block[right // width])
            total += math.fsum(torch.stack(sums).tolist()) / 2  # at once, for reading waits for an accelerator
    return total


@contextmanager
def _side_by_side(device: torch.device) -> Iterator[Callable[..., Iterator[Any]]]:
    """Gives what maps a function; on a processor, it is called in as many threads at a time as torch has.

    Each call has one thread: its operations are short, and threads that share one wait for each other at its end.
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


def _find_patterns(packed: Tensor, units: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """In which observations units are active.

    Args:
        packed: states of one class ``[observations, bytes]``.
        units: number of units.
        width: units that are looked at in one go.

    Returns:
        The patterns that differ, packed in bits, uint8 ``[patterns, ceil(observations / 8)]``; how often each is
        active, int32 ``[patterns]`` in ascending order; and the number of units that have it, int64 ``[patterns]``.
    """
    by_unit = [
        torch.cat([pack_states(unpack_states(part, torch.bool).T) for part in torch.split(block, OBSERVATIONS)], dim=1)
        for block in torch.split(packed, width // 8, dim=1)
    ]
    patterns = torch.cat(by_unit)[:units]
    size = patterns.shape[1]
    numbers = functional.pad(patterns, (0, -size % 8)).view(torch.int64)  # quicker to compare than bytes
    distinct, counts = torch.unique(numbers, dim=0, return_counts=True)
    different = distinct.view(torch.uint8)[:, :size]
    active, order = count_active(different).sort()
    return different[order], active, counts[order]


def _rules(active: Tensor, table: Tensor, width: int) -> list[SinglyCounted] | list[CountedInPairs]:
    """How to look up the entropies of the pairs that units of each block have with others."""
    observations = len(table) - 1
    size = 2 * (active.unique_consecutive().numel() + len(active) // width) * (observations + 1)
    if size > min(len(active) ** 2 // 4, LARGEST_TABLES):
        return [SinglyCounted(part, table) for part in torch.split(active, width)]
    return [CountedInPairs(part, table) for part in torch.split(active, width)]


def _sum_over_block(
    block: tuple[int, int],
    patterns: Tensor,
    active: Tensor,
    weights: Tensor,
    rules: Sequence[SinglyCounted] | Sequence[CountedInPairs],
    width: int,
) -> Tensor:
    """Weighted sum of the joint entropies of the pairs of a pattern from one block and a pattern from another.

    Args:
        block: the first pattern of each.
        patterns: those of one class, packed ``[patterns, bytes]``.
        active: how often each is active ``[patterns]``.
        weights: the number of units that have it ``[patterns]``.
        rules: how to look up the entropies of pairs of the units of each block.
        width: units of a block.
    """
    left, right = (slice(start, start + width) for start in block)
    together = _count_together(patterns[left], patterns[right])
    rule = rules[block[0] // width]
    columns = active[right] + rule.shift
    height = min(ROWS if active.is_cpu else width, len(together))
    size = (height, rule.lookups, len(columns))
    places = torch.empty(size, dtype=torch.int32, device=active.device)
    terms = weights.new_empty(places.numel())  # taken once: memory that is new to the process is slow
    sums = weights.new_empty(len(together), rule.lookups)
    for start in range(0, len(together), height):
        rows = slice(start, start + height)
        part = together[rows]
        used = places[: len(part)]
        rule.place(part, rows, columns, out=used)
        found = torch.index_select(rule.table, 0, used.flatten(), out=terms[: used.numel()])
        torch.mv(found.view(-1, len(columns)), weights[right], out=sums[rows].view(-1))
    return weights[left] @ sums.sum(1)


def _count_together(left: Tensor, right: Tensor) -> Tensor:
    """How often two packed patterns are active together, exact ``[patterns of left, patterns of right]``."""
    device, by_bytes = left.device, multiplies_bytes(left.device)
    dtype = torch.int8 if by_bytes else torch.float32
    wide = torch.float32 if by_bytes or 8 * left.shape[1] <= LARGEST_COUNT else widest_float(device)
    together: Tensor | None = None
    parts = [torch.split(patterns, OBSERVATIONS // 8, dim=1) for patterns in (left, right)]
    with torch.autocast(device.type, enabled=False):  # it would round the counts
        for first_part, second_part in zip(*parts, strict=True):
            first, second = unpack_states(first_part, dtype), unpack_states(second_part, dtype)
            product = multiply_bytes(first, second.T) if by_bytes else (first @ second.T).to(wide)
            together = product if together is None else together.add_(product)
    assert together is not None
    return together
