"""Finding the class labels in a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

# Where the class labels of a batch are: an index, a key, or what gives them. None looks where they usually are. A
# LightningCLI takes the dotted name of a function for the function only where no class is what the function gives.
Target: TypeAlias = Callable[[Any], Any] | int | str | None

_KEYS = ("label", "labels", "target", "y")


def find_target(batch: Any, target: Target = None) -> Tensor | None:
    """Finds the class labels in a batch.

    Args:
        batch: what a data loader gave.
        target: an index or a key of the batch, or a callable that is given the batch and returns its labels. None looks
            at the second item of a pair (a tuple or list of two), and at the items ``"label"``, ``"labels"``,
            ``"target"`` and ``"y"`` of a mapping.

    Returns:
        The labels ``[batch]``, int64 whatever integers they were; None where `target` is None and there are none.

    Raises:
        ValueError: if an index or key is not in the batch, or what is found by `target` is no tensor of one dimension
            and an integer type.

    Example:
        >>> images, labels = torch.zeros(3, 1, 8, 8), torch.tensor([2, 0, 1])
        >>> find_target([images, labels])
        tensor([2, 0, 1])
        >>> find_target({"image": images, "class": labels}, "class")
        tensor([2, 0, 1])
        >>> find_target((images, torch.rand(3))) is None
        True
    """
    if target is None:
        return next((found.long() for found in _usual_places(batch) if _is_labels(found)), None)
    if callable(target):
        found = target(batch)
    else:
        try:
            found = batch[target]
        except (IndexError, KeyError, TypeError) as error:
            raise ValueError(
                f"Argument `target` is {target!r}, at which the batch has no item; the batch is {describe(batch)}."
            ) from error
    if not _is_labels(found):
        raise ValueError(
            "Expected argument `target` to find the class labels of a batch, a tensor [batch] of an integer type, but"
            f" target={target!r} found {describe(found)}."
        )
    labels: Tensor = found.long()  # torch cannot compare unsigned integers of more than 8 bits
    return labels


def check_target(target: Any) -> None:
    """Raises a TypeError unless `target` is an index, a key, a callable or None."""
    if target is not None and (isinstance(target, bool) or not (isinstance(target, (int, str)) or callable(target))):
        raise TypeError(f"Expected argument `target` to be an index, a key, a callable or None but got {target!r}.")


def _usual_places(batch: Any) -> list[Any]:
    if isinstance(batch, Mapping):
        return [batch[key] for key in _KEYS if key in batch]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return [batch[1]]
    return []


def _is_labels(found: Any) -> bool:
    return (
        isinstance(found, Tensor)
        and found.ndim == 1
        and not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    )


def describe(found: Any) -> str:
    """A few words on what a batch or a part of it is."""
    if isinstance(found, Tensor):
        return f"a tensor {[*found.shape]} of {found.dtype}"
    if isinstance(found, Mapping):
        return f"a {type(found).__name__} with the keys {[*found]}"
    if isinstance(found, (tuple, list)):
        return f"a {type(found).__name__} of {len(found)}"
    return f"a {type(found).__name__}"
