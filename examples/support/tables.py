"""Tables in Markdown."""

import statistics
from collections.abc import Sequence


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
