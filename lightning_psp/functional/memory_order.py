"""How a tensor lies in memory."""

from __future__ import annotations

from torch import Tensor


def memory_order(tensor: Tensor, leading: int = 0) -> list[int] | None:
    """The dimensions of a tensor in the order in which memory steps through them, the slowest first.

    Args:
        tensor: of any shape.
        leading: number of dimensions that have to come first, in their own order.

    Returns:
        The dimensions, or None where the values do not lie side by side in such an order.

    Example:
        >>> import torch
        >>> images = torch.ones(2, 3, 4, 5)
        >>> memory_order(images.contiguous(memory_format=torch.channels_last))
        [0, 2, 3, 1]
        >>> memory_order(images.transpose(0, 1), leading=1) is None
        True
    """
    dims = [*range(tensor.ndim)]
    if tensor.is_contiguous():
        return dims
    dims[leading:] = sorted(dims[leading:], key=tensor.stride, reverse=True)
    return dims if tensor.permute(dims).is_contiguous() else None
