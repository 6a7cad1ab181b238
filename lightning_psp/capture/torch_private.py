"""What the package asks of torch that has no public name, and what it does where a version of torch lacks that name."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils import swap_tensors

# Looked up by name, for the names are not in the type stubs of every version.
_use_count: Any = getattr(Tensor, "_use_count", None)
_swap_tensor_impl: Any = getattr(torch._C, "_swap_tensor_impl", None)
_storage_use_count: Any = getattr(torch._C, "_storage_Use_Count", None)


def is_held_elsewhere(tensor: Tensor) -> bool:
    """Whether anything but Python holds a tensor, such as the autograd graph.

    True where this version of torch does not tell.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> result = x * 2
        >>> is_held_elsewhere(result)
        False
        >>> product = result * result  # saves it for its backward pass
        >>> is_held_elsewhere(result)
        True
    """
    return _use_count is None or bool(_use_count(tensor) != 1)


def is_memory_held_elsewhere(tensor: Tensor) -> bool:
    """Whether another tensor, in Python or in the autograd graph, holds the memory of this one.

    True where this version of torch does not tell.

    Example:
        >>> tensor = torch.ones(2)
        >>> is_memory_held_elsewhere(tensor)
        False
        >>> view = tensor[:1]
        >>> is_memory_held_elsewhere(tensor)
        True
    """
    if _storage_use_count is None:
        return True
    # The handle is a holder, too, while it lives: older versions of torch let go of it with its last reference, newer
    # ones with the memory.
    handle = tensor.untyped_storage()
    return bool(_storage_use_count(handle._cdata) != 2)


def swap(tensor: Tensor, other: Tensor) -> None:
    """Has two tensors exchange values and graph, as `torch.utils.swap_tensors` does.

    Its checks are made only where one of them can fail, and where this version of torch has no exchange without them.

    Example:
        >>> one, two = torch.ones(2), torch.zeros(1)
        >>> swap(one, two)
        >>> one, two
        (tensor([0.]), tensor([1., 1.]))
    """
    if _swap_tensor_impl is not None and _is_plain(tensor) and _is_plain(other):
        _swap_tensor_impl(tensor, other)
    else:
        swap_tensors(tensor, other)


def _is_plain(tensor: Tensor) -> bool:
    """Whether nothing else holds a tensor, and nothing belongs to it but its values and its graph."""
    return (
        type(tensor) is Tensor
        and not tensor.__dict__
        and not weakref.getweakrefcount(tensor)
        and not is_held_elsewhere(tensor)
    )
