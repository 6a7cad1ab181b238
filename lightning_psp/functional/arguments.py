"""Errors for arguments outside what is allowed, all in the same words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import Any

from torch import Tensor


def check_number(
    name: str,
    value: Any,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
) -> None:
    """Raises an error unless an argument is a finite number within its bounds.

    Example:
        >>> check_number("lam", -1, at_least=0)
        Traceback (most recent call last):
        ...
        ValueError: Expected argument `lam` to be a finite number of at least 0 but got -1.
    """
    if isinstance(value, bool) or not isinstance(value, Real):  # NumPy's numbers are real ones, too
        raise TypeError(f"Expected argument `{name}` to be a number but got {value!r}.")
    number = float(value)
    is_low = (at_least is not None and number < at_least) or (above is not None and number <= above)
    is_high = at_most is not None and number > at_most
    if is_low or is_high or not math.isfinite(number):
        bound = "" if at_least is None else f" of at least {at_least}"
        bound = bound if above is None else f" above {above}"
        if at_most is not None:
            bound += f" and at most {at_most}" if bound else f" of at most {at_most}"
        raise ValueError(f"Expected argument `{name}` to be a finite number{bound} but got {value!r}.")


def check_integer(name: str, value: Any, at_least: int | None = None) -> None:
    """Raises an error unless an argument is an integer within its bounds."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"Expected argument `{name}` to be an integer but got {value!r}.")
    if at_least is not None and value < at_least:
        raise ValueError(f"Expected argument `{name}` to be at least {at_least} but got {value}.")


def check_bool(name: str, value: Any) -> None:
    """Raises an error unless an argument is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"Expected argument `{name}` to be a bool but got {value!r}.")


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raises an error unless an argument is one of the names that are allowed."""
    if value not in tuple(allowed):
        raise ValueError(f"Expected argument `{name}` to be one of {', '.join(allowed)} but got {value!r}.")


def check_data(data: Any) -> None:
    """Raises an error unless data can be iterated again and again."""
    if not isinstance(data, Iterable):
        raise TypeError(f"Expected argument `data` to be an iterable of batches but got {type(data).__name__}.")
    if isinstance(data, Iterator):
        raise TypeError(
            "Expected argument `data` to be an iterable that starts again each time, such as a DataLoader or a list of"
            f" batches, but got {type(data).__name__}, which ends after one pass."
        )


def remedy_for_batch(batch: Any) -> str:
    """The remedy where a batch should be a tuple; nothing where none is known."""
    if isinstance(batch, Mapping) and batch:
        return f" Make tuples of it, such as (batch[{next(iter(batch))!r}],)."
    if isinstance(batch, Tensor):
        return " A single batch is given as a list of one, [(images, labels)]."
    return ""
