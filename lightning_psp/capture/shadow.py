"""A graph of what is computed without gradient, of which autograd keeps none."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_psp.capture.origin import tensors_in
from lightning_psp.capture.origins import Origins
from lightning_psp.gradient.graph import Edge


class ShadowNode:
    """A call of a function, with the interface of a node of autograd's graph; holds no tensor.

    Args:
        function: name of the function.
        parents: the calls that gave its arguments.
    """

    __slots__ = ("_function", "next_functions")

    def __init__(self, function: str, parents: list[ShadowNode]) -> None:
        self._function = function
        self.next_functions = tuple((parent, 0) for parent in parents)

    def copy(self) -> ShadowNode:
        """Another node for the same call, for another of its results."""
        node = ShadowNode(self._function, [])
        node.next_functions = self.next_functions
        return node

    def name(self) -> str:
        """Name of the function."""
        return self._function


def start_call(origins: Origins, function: str, values: Any) -> ShadowNode:
    """A node for a call of a function with the tensors in these arguments."""
    found = [origins.find(tensor) for tensor in tensors_in(values)]
    return ShadowNode(function, [origin.node for origin in found if origin is not None and origin.node is not None])


def note_call(origins: Origins, node: ShadowNode | None, result: Any) -> None:
    """Notes what a function gave, where weights had a part in it.

    Args:
        origins: keeps the nodes.
        node: the call.
        result: what it returned.
    """
    for tensor in (result,) if isinstance(result, Tensor) else tensors_in(result):
        origin = origins.find(tensor)
        if origin is not None and origin.is_made and tensor.dtype.is_floating_point:
            origin.node = node


def edge_of(origins: Origins, tensor: Tensor) -> Edge:
    """The edge that leads to a tensor, in autograd's graph or else in this one."""
    if tensor.grad_fn is not None:
        return tensor.grad_fn, tensor.output_nr
    origin = origins.find(tensor)
    return (None if origin is None else origin.node), 0
