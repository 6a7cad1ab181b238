"""The second direction of a plane of weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# What is left of a random direction by rounding errors alone.
_NOTHING = 1e-9


def orthogonal_direction(
    first: Sequence[Tensor], second: Sequence[Tensor], kept: Sequence[Tensor | None], seed: int
) -> list[Tensor]:
    """A random direction that is orthogonal to ``second - first`` and as long.

    Args:
        first: the weights of one solution, real tensors.
        second: those of the other.
        kept: True where a weight may be moved; None for all of a tensor.
        seed: seed of the direction.

    Returns:
        A float64 tensor for each of `first`. It is drawn from a normal distribution, in which no direction has
        precedence; what of it lies along ``second - first`` is then taken out.

    Raises:
        ValueError: if no weight, or only one, may be moved.

    Example:
        >>> first, second = torch.zeros(2), torch.tensor([3.0, 4.0])
        >>> direction = orthogonal_direction([first], [second], [None], seed=0)[0]
        >>> bool((direction @ second.double()).abs() < 1e-12), direction.norm().item()
        (True, 5.0)
    """
    difference = [b.double() - a.double() for a, b in zip(first, second, strict=True)]
    within = [_masked(each, keep) for each, keep in zip(difference, kept, strict=True)]
    drawn = _draw(first, kept, seed)
    before = _norm(drawn)
    square = _dot(within, within)
    for _ in range(2):  # the second time takes out the rounding errors of the first
        along = _dot(drawn, within) / square if square > 0 else 0.0
        drawn = [each - along * other for each, other in zip(drawn, within, strict=True)]
    left = _norm(drawn)
    if left <= _NOTHING * before or before == 0:
        raise ValueError(
            "Expected argument `masks` to keep weights in which there is a direction orthogonal to `second - first` but"
            " got none."
        )
    return [each * (_norm(difference) / left) for each in drawn]


def filter_direction(
    first: Sequence[Tensor], second: Sequence[Tensor], kept: Sequence[Tensor | None], seed: int
) -> list[Tensor]:
    """A random direction in which each filter is as long as that of `first`, and orthogonal to ``second - first``.

    A filter is a row along the first dimension of a tensor of two or more. Tensors of fewer dimensions (biases,
    parameters of a norm) are not moved.

    Args:
        first: the weights of one solution, real tensors.
        second: those of the other.
        kept: True where a weight may be moved; None for all of a tensor.
        seed: seed of the direction.

    Returns:
        A float64 tensor for each of `first`; 0 in filters in which nothing is orthogonal, such as those of one weight.

    Raises:
        ValueError: if there is no such filter.

    Example:
        >>> first, second = torch.tensor([[3.0, 4.0]]), torch.tensor([[5.0, 4.0]])
        >>> filter_direction([first], [second], [None], seed=0)[0].abs()
        tensor([[0., 5.]], dtype=torch.float64)
    """
    directions = []
    for a, b, drawn, keep in zip(first, second, _draw(first, kept, seed), kept, strict=True):
        if a.ndim < 2:
            directions.append(torch.zeros_like(drawn))
            continue
        rows, weights = drawn.flatten(1), a.double().flatten(1)
        difference = _masked(b.double() - a.double(), keep).flatten(1)
        before = rows.norm(dim=1, keepdim=True)
        square = difference.square().sum(1, keepdim=True)
        for _ in range(2):
            along = (rows * difference).sum(1, keepdim=True) / square.where(square > 0, 1.0)
            rows = rows - along * difference
        left = rows.norm(dim=1, keepdim=True)
        scale = weights.norm(dim=1, keepdim=True) / left.where(left > _NOTHING * before, torch.inf)
        directions.append((rows * scale).view_as(drawn))
    if not any(direction.any() for direction in directions):
        raise ValueError(
            "Expected argument `module` to have filters that argument `masks` keeps, in which there is a direction"
            ' orthogonal to `second - first`, but got none. Use direction="orthogonal".'
        )
    return directions


def _draw(like: Sequence[Tensor], kept: Sequence[Tensor | None], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)  # of the processor: the same on every device
    drawn = [torch.randn(each.shape, generator=generator, dtype=torch.float64, device="cpu") for each in like]
    return [_masked(each, keep) for each, keep in zip(drawn, kept, strict=True)]


def _masked(tensor: Tensor, keep: Tensor | None) -> Tensor:
    return tensor if keep is None else tensor.masked_fill(~keep, 0.0)


def _dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    return float(sum((a * b).sum().item() for a, b in zip(first, second, strict=True)))


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(_dot(tensors, tensors) ** 0.5)
