"""Tables in Markdown, and the numbers in them."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

LAST = 5  # epochs that a claim rests on: single ones differ by more than techniques do


def mean_of_last(result: Mapping[str, Any], name: str) -> float:
    """Mean of a value over the last five epochs of a training.

    Args:
        result: What `train_once` has written.
        name: Name of the value, such as ``"error"``.
    """
    return statistics.mean(epoch[name] for epoch in result["epochs"][-LAST:])


def mean_and_deviation(values: Sequence[float], digits: int = 2) -> str:
    """Format mean ± sample standard deviation; a single value has no deviation.

    Args:
        values: One value a training.
        digits: Digits behind the point.
    """
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table whose first column is text and whose others are numbers."""
    ruler = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ruler, *rows)) + "\n"
