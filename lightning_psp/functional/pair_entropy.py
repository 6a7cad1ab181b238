"""Joint entropy of all pairs of units of a layer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from lightning_psp.functional.binary_entropy import LARGEST_COUNT, entropy_table
from lightning_psp.functional.precision import widest_float
from lightning_psp.functional.progress import progress_bar
from lightning_psp.functional.states import count_active, pack_states, unpack_states
from lightning_psp.torch_private.products import multiplies_bytes, multiply_bytes

# Units whose pairs are counted in one product, a multiple of 8.
BLOCK = 1024
# Rows of a block that are looked up at a time: the counts stay in cache, and a call is still long.
ROWS = 64
# Observations that are unpacked at a time, a multiple of 8.
OBSERVATIONS = 8192


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
    total = 0.0
    with _side_by_side(parts[0].device) as map_blocks, progress_bar(len(parts) * units * units, "pair") as progress:
        for packed in parts:
            table = entropy_table(len(packed), packed.device)
            patterns, numbers = _find_patterns(packed, units)
            active = count_active(patterns)
            weights = numbers.to(table.dtype)
            # Blocks on the diagonal hold every pair twice, and every unit with itself.
            twice = -(weights @ (table[active] + table[len(packed) - active])).item()
            blocks = list(itertools.combinations_with_replacement(range(0, len(patterns), BLOCK), 2))
            block_sum = partial(
                _sum_over_block,
                patterns=patterns,
                active=active,
                weights=weights,
                table=table,
                observations=len(packed),
            )
            in_block = [int(part.sum()) for part in torch.split(numbers, BLOCK)]
            # A single block is not worth the time of handing it to another thread.
            sums = map_blocks(block_sum, blocks) if len(blocks) > 1 else map(block_sum, blocks)
            for (left, right), found in zip(blocks, sums, strict=True):
                times = 1 if left == right else 2
                twice += times * found
                progress.update(times * in_block[left // BLOCK] * in_block[right // BLOCK])
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


def _find_patterns(packed: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """In which observations units are active.

    Args:
        packed: states of one class ``[observations, bytes]``.
        units: number of units.

    Returns:
        The patterns that differ, packed in bits, uint8 ``[patterns, ceil(observations / 8)]``, and the number of units
        that have each, int64 ``[patterns]``.
    """
    by_unit = [
        torch.cat([pack_states(unpack_states(part, torch.bool).T) for part in torch.split(block, OBSERVATIONS)], dim=1)
        for block in torch.split(packed, BLOCK // 8, dim=1)
    ]
    patterns = torch.cat(by_unit)[:units]
    size = patterns.shape[1]
    numbers = functional.pad(patterns, (0, -size % 8)).view(torch.int64)  # quicker to compare than bytes
    distinct, counts = torch.unique(numbers, dim=0, return_counts=True)
    return distinct.view(torch.uint8)[:, :size].contiguous(), counts


def _sum_over_block(
    block: tuple[int, int], patterns: Tensor, active: Tensor, weights: Tensor, table: Tensor, observations: int
) -> float:
    """Weighted sum of the joint entropies of the pairs of a pattern from one block and a pattern from another.

    Args:
        block: the first pattern of each.
        patterns: those of one class, packed ``[patterns, bytes]``.
        active: how often each is active ``[patterns]``.
        weights: the number of units that have it ``[patterns]``.
        table: what a count adds to the entropy, by count.
        observations: of the class.
    """
    left, right = (slice(start, start + BLOCK) for start in block)
    together = _count_together(patterns[left], patterns[right])
    rows, columns = active[left].unsqueeze(1), active[right]
    total = table.new_zeros(())
    counts = torch.empty(min(ROWS, len(rows)), 4, len(columns), dtype=torch.int32, device=table.device)
    terms = table.new_empty(counts.numel())  # taken once: memory that is new to the process is slow
    for part, row, weight in zip(*(torch.split(each, ROWS) for each in (together, rows, weights[left])), strict=True):
        states = counts[: len(part)]
        both, first, second, neither = states.unbind(1)
        both.copy_(part)
        torch.sub(row, both, out=first)
        torch.sub(columns, both, out=second)
        torch.sub(observations - row, second, out=neither)
        found = torch.index_select(table, 0, states.flatten(), out=terms[: states.numel()])
        total += weight @ (found.view(-1, len(columns)) @ weights[right]).view(-1, 4).sum(1)
    return total.item()


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
