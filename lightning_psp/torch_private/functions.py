"""Functions of torch that have no public name."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_psp.torch_private.names import find

_nn: Any = find("torch._C._nn")
_unsafe_view: Any = find("torch.ops.aten._unsafe_view")

# Where torch keeps functions of which `torch.nn.functional` has some under the same name and wraps others: graphs have
# the former. Without it, the latter are known by their public names alone.
FURTHER_NAMESPACES: tuple[Any, ...] = () if _nn is None else (_nn,)


def same_memory(tensor: Tensor) -> Tensor:
    """Another tensor with the same values, in the same memory, that autograd does not know as a view.

    Of views, compilers hand out the base, and make views of it anew: a gradient that is added on the way would be lost.
    Where this version of torch cannot make one, it is a copy.

    Example:
        >>> import torch
        >>> tensor = torch.ones(2)
        >>> same_memory(tensor).data_ptr() == tensor.data_ptr()
        True
    """
    same: Tensor = tensor.clone() if _unsafe_view is None else _unsafe_view(tensor, tensor.size())
    return same
