"""Tensors: who holds them, whether they are views, overwritten or transformed, and exchanging two of them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Literal

from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils import swap_tensors

from lightning_psp.torch_private.names import find, lacking

# Looked up by name, for the names are not in the type stubs of every version.
_use_count: Any = getattr(Tensor, "_use_count", None)
_swap_tensor_impl: Any = find("torch._C._swap_tensor_impl")
_storage_use_count: Any = find("torch._C._storage_Use_Count")
_is_view: Any = getattr(Tensor, "_is_view", None)
_base: Any = getattr(Tensor, "_base", None)
_is_batched: Any = find("torch._C._functorch.is_batchedtensor")
_is_tracking_gradient: Any = find("torch._C._functorch.is_gradtrackingtensor")
_tree_map_only: Any = find("torch.utils._pytree.tree_map_only")


def is_held_elsewhere(tensor: Tensor) -> bool:
    """Whether anything but Python holds a tensor, such as the autograd graph.

    True where this version of torch does not tell.

    Example:
        >>> import torch
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
        >>> import torch
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


def swap(tensor: Tensor, other: Tensor, *, are_plain: bool = False) -> None:
    """Has two tensors exchange values and graph, as `torch.utils.swap_tensors` does.

    Its checks are made only where one of them can fail, and where this version of torch has no exchange without them.

    Args:
        tensor: one of them.
        other: the other one.
        are_plain: whether it is known that no check can fail.

    Example:
        >>> import torch
        >>> one, two = torch.ones(2), torch.zeros(1)
        >>> swap(one, two)
        >>> one, two
        (tensor([0.]), tensor([1., 1.]))
    """
    if _swap_tensor_impl is not None and (are_plain or (_is_plain(tensor) and _is_plain(other))):
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


def is_view(tensor: Tensor) -> bool:
    """Whether autograd knows a tensor as a view of another one.

    True where this version of torch does not tell: what is done for views is right for others, too, and holds more.

    Example:
        >>> import torch
        >>> is_view(torch.ones(3)), is_view(torch.ones(3)[1:])
        (False, True)
    """
    return _is_view is None or bool(_is_view(tensor))


def base_of(tensor: Tensor) -> Tensor | None:
    """The tensor of which this one is a view.

    None where it is no view, and where this version of torch does not tell.

    Example:
        >>> import torch
        >>> base = torch.ones(3)
        >>> base_of(base) is None, base_of(base[1:]) is base
        (True, True)
    """
    return None if _base is None else _base.__get__(tensor)


def version_of(tensor: Tensor) -> int:
    """How often the values of a tensor, and of all that share its memory, were overwritten.

    Raises:
        NotImplementedError: if this version of torch does not tell.

    Example:
        >>> import torch
        >>> tensor = torch.ones(3)
        >>> before = version_of(tensor)
        >>> version_of(tensor.add_(1)) - before
        1
    """
    try:
        return tensor._version
    except AttributeError:
        lacking("Tensor._version", "potentials that are overwritten cannot be told", "Use another version.")


def transformation_of(tensor: Tensor) -> Literal["vmap", "grad", "unknown"] | None:
    """Which transformation of functions a tensor was made for: that of `torch.vmap` or of `torch.func.grad`.

    ``"unknown"`` for any of them where this version of torch tells only that there is one.

    Example:
        >>> import torch
        >>> transformation_of(torch.ones(2)) is None
        True
    """
    if _is_batched is None or _is_tracking_gradient is None:
        try:
            tensor.untyped_storage()
        except NotImplementedError:
            return "unknown"
        return None
    return "vmap" if _is_batched(tensor) else "grad" if _is_tracking_gradient(tensor) else None


def map_tensors(function: Callable[[Tensor], Any], values: Any) -> Any:
    """Applies a function to all tensors in nested containers.

    Where this version of torch does not do so, containers that are only registered with it are left as they are.

    Example:
        >>> import torch
        >>> map_tensors(torch.sum, {"a": [torch.ones(2)], "b": 3})
        {'a': [tensor(2.)], 'b': 3}
    """
    if _tree_map_only is None:
        return apply_to_collection(values, Tensor, function)
    return _tree_map_only(Tensor, function, values)
