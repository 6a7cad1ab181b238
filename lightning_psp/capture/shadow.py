"""A graph of what is computed without gradient, of which autograd keeps none."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from lightning_psp.capture.graph import Edge
from lightning_psp.capture.origin import tensors_in
from lightning_psp.capture.origins import Origins
from lightning_psp.torch_private.autograd import holder_of
from lightning_psp.torch_private.tensors import base_of


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


class Graph:
    """The graph in which tensors are found: autograd's, or that of what is computed without gradient.

    Args:
        origins: keeps the nodes of the latter.
    """

    def __init__(self, origins: Origins) -> None:
        self._origins = origins
        self._running: ShadowNode | None = None
        self._holders: dict[Any, Any] = {}  # of the nodes of custom functions, which are followed once tensors are gone

    def clear(self) -> None:
        """Lets go of what autograd's graph was held by."""
        self._holders.clear()

    def node(self, function: str, values: Any) -> ShadowNode:
        """A node for a call of a function with the tensors in these arguments."""
        found = [self._origins.find(tensor) for tensor in tensors_in(values)]
        return ShadowNode(function, [origin.node for origin in found if origin is not None and origin.node is not None])

    def start_call(self, function: str, values: Any) -> None:
        """A function is called."""
        self._running = self.node(function, values)

    def end_call(self, result: Any) -> None:
        """Notes what the function gave, where weights had a part in it."""
        for tensor in (result,) if isinstance(result, Tensor) else tensors_in(result):
            origin = self._origins.find(tensor)
            if origin is not None and origin.is_made and tensor.dtype.is_floating_point:
                origin.node = self._running
        self._running = None

    def edge(self, tensor: Tensor) -> Edge:
        """The edge that leads to a tensor; of what a running function gives, to its call."""
        node: Any = tensor.grad_fn
        if node is not None:
            if isinstance(node, BackwardCFunction) and node not in self._holders:
                holder = holder_of(tensor)
                if holder is not None:
                    self._holders[node] = holder
            return node, tensor.output_nr
        origin = self._origins.find(tensor)
        shadow = None if origin is None else origin.node
        return (self._running if shadow is None else shadow), 0

    def edges(self, result: Tensor) -> list[Edge]:
        """The edges that lead to the result of a function.

        Losses of sequences give a view of what they compute: once that is overwritten, as by a mask, the graph leads to
        the latter alone.
        """
        base = base_of(result)
        return [self.edge(result)] if base is None else [self.edge(result), self.edge(base)]
