"""Looking up the joint entropy of two units by how often both are active.

With the number of observations n, and how often each is active, a and b, that number c gives the counts of all four
joint states: c, a − c, b − c and n − a − b + c. Each count adds to the entropy what a table tells.
"""

from __future__ import annotations

import torch
from torch import Tensor


class SinglyCounted:
    """Looks up each of the four states.

    Args:
        active: how often each unit of a block is active, int32 ``[units]``.
        table: what a state adds to the entropy, by its count ``[observations + 1]``.
    """

    lookups = 4
    shift = 0

    def __init__(self, active: Tensor, table: Tensor) -> None:
        self.table = table
        self._active = active
        self._inactive = len(table) - 1 - active

    def place(self, together: Tensor, rows: slice, columns: Tensor, out: Tensor) -> None:
        """Writes where in the table the terms of each pair are.

        Args:
            together: how often both units of a pair are active ``[rows, columns]``.
            rows: the units of the block that are meant.
            columns: how often each of the other units is active, plus `shift`, int32 ``[columns]``.
            out: int32 ``[rows, lookups, columns]``.
        """
        both, first, second, neither = out.unbind(1)
        both.copy_(together)
        torch.sub(self._active[rows].unsqueeze(1), both, out=first)
        torch.sub(columns, both, out=second)
        torch.sub(self._inactive[rows].unsqueeze(1), second, out=neither)


class CountedInPairs:
    """Looks up the two states in which the unit of the block is active together, and the other two together.

    For a unit that is active a times, what the first two add depends on c alone, and what the others add on b − c. So
    half the lookups do, in a table for each a. As units are sorted by a, these are few.

    Args:
        active: how often each unit of a block is active, int32 ``[units]``, equal ones side by side.
        table: what a state adds to the entropy, by its count ``[observations + 1]``.
    """

    lookups = 2

    def __init__(self, active: Tensor, table: Tensor) -> None:
        counts = torch.arange(len(table), device=table.device)
        numbers, which = torch.unique_consecutive(active, return_inverse=True)
        numbers = numbers.unsqueeze(1)
        # The rest is negative where there is no such count, which is not asked for.
        of_active, of_inactive = (
            table + table[(total - counts).clamp(min=0)] for total in (numbers, len(counts) - 1 - numbers)
        )
        # In reverse, what is added to find the one is subtracted to find the other.
        self.table = torch.cat([of_active, of_inactive.flip(0)]).flatten()
        self._starts = (which * len(counts)).int().unsqueeze(1)
        self.shift = len(self.table) - len(counts)

    def place(self, together: Tensor, rows: slice, columns: Tensor, out: Tensor) -> None:
        """Writes where in the table the terms of each pair are; see :meth:`SinglyCounted.place`."""
        of_active, of_inactive = out.unbind(1)
        of_active.copy_(together).add_(self._starts[rows])
        torch.sub(columns, of_active, out=of_inactive)
