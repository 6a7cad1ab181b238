"""Functions of torch that have no public name."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from lightning_psp.torch_private.names import find

_nn: Any = find("torch._C._nn")
_unsafe_view: Any = find("torch.ops.aten._unsafe_view")
_packet: Any = find("torch._ops.OpOverloadPacket")

# Where torch keeps functions of which `torch.nn.functional` has some under the same name and wraps others: graphs have
# the former. Without it, the latter are known by their public names alone.
FURTHER_NAMESPACES: tuple[Any, ...] = () if _nn is None else (_nn,)


@cache
def operators_of(name: str) -> tuple[Any, ...]:
    """What graphs made by `torch.export` call in place of the functions and methods of a name; none if unknown.

    Example:
        >>> [str(operator) for operator in operators_of("relu")[:2]]
        ['aten.relu', 'aten.relu.default']
    """
    packet = getattr(torch.ops.aten, name, None)
    if _packet is None or not isinstance(packet, _packet):
        return ()
    return packet, *(getattr(packet, overload) for overload in packet.overloads())


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
