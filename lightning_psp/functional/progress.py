"""A bar for computations of more than a few seconds."""

from __future__ import annotations

from typing import Any

from torch import distributed
from tqdm.auto import tqdm

SECONDS_WITHOUT_BAR = 2.0
# Larger numbers, such as those of pairs of units, are shown as 12.3k or 1.20M.
_LARGEST_COUNT = 9999


def progress_bar(total: int | None, unit: str, description: str = "PSP-entropy") -> Any:
    """A progress bar on stderr of one process that shows after two seconds, and that leaves no trace.

    Without a total it counts.
    """
    is_other_process = distributed.is_available() and distributed.is_initialized() and distributed.get_rank() != 0
    return tqdm(
        total=total,
        desc=description,
        unit=f" {unit}",
        unit_scale=total is not None and total > _LARGEST_COUNT,
        delay=SECONDS_WITHOUT_BAR,
        leave=False,
        disable=is_other_process,
    )
