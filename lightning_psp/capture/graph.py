"""Which part of the autograd graph a loss reaches."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.autograd.graph import Node

# Nodes of the graph that map by a weight, and those that only arrange or cast one.
_MAPS = re.compile(r"(addmm|addmv|mm|mv|bmm|baddbmm|linear|convolution\w*)backward\d*", re.IGNORECASE)
_ARRANGING = re.compile(r"(t|transpose|permute|view|unsafeview|reshapealias|tocopy)backward\d*", re.IGNORECASE)
# Without gradient, such a node is called as torch's module or function is.
_CALLS_OF_MAPS = re.compile(r"(linear|bilinear|(lazy)?conv_?(transpose)?\dd)", re.IGNORECASE)

# Without gradient, nodes of `capture.shadow` stand for those of autograd.
Edge: TypeAlias = tuple[Any, int]


@dataclass(frozen=True)
class ReachedGraph:
    """The edges along which a backward pass from a loss sends gradient.

    Args:
        edges: pairs of a node and the number of its output.
        nodes_of_parameters: the nodes below which a trained parameter lies, or None where that holds for all.
    """

    edges: frozenset[Edge] | set[Edge]
    nodes_of_parameters: set[Node] | None

    def holds(self, edge: Edge) -> bool:
        """Whether gradient of the loss arrives there and goes on to a trained parameter."""
        # A constant has no node.
        if edge[0] is None or edge not in self.edges:
            return False
        return self.nodes_of_parameters is None or edge[0] in self.nodes_of_parameters


def reach(loss: Tensor) -> ReachedGraph:
    """Walks the graph of a loss.

    Args:
        loss: the tensor whose `backward` is about to be called.

    Raises:
        NotImplementedError: if a reentrant activation checkpoint lies on the way, inside which no potential can be
            seen from here: one of another library, for torch's own run as non-reentrant ones in a watch.
    """
    return reach_from((loss.grad_fn, loss.output_nr))


def reach_from(edge: Edge) -> ReachedGraph:
    """Walks the graph below the tensor that an edge stands for; see :func:`reach`."""
    root = edge[0]
    if root is None:
        return ReachedGraph(frozenset(), None)
    edges: set[Edge] = {edge}
    seen = {root}
    pending = [root]
    trained: list[Node] = []
    has_other_leaves = False
    kinds: set[type[Node]] = set()
    for node in pending:
        following = node.next_functions
        if following:
            kinds.add(type(node))
            for edge in following:
                if edge not in edges:
                    edges.add(edge)
                    reached = edge[0]
                    if reached is not None and reached not in seen:
                        seen.add(reached)
                        pending.append(reached)
        elif isinstance(getattr(node, "variable", None), nn.Parameter):
            trained.append(node)
        else:
            has_other_leaves = True
    refuse_reentrant_checkpoints(kinds)
    return ReachedGraph(edges, _above(trained, seen) if has_other_leaves else None)


def refuse_reentrant_checkpoints(kinds: Iterable[type[Node]]) -> None:
    """Raises the error of :func:`reach` if nodes of one of these kinds are of such a checkpoint."""
    if any(kind.__name__ == "CheckpointFunctionBackward" for kind in kinds):
        raise NotImplementedError(
            "The loss depends on a reentrant activation checkpoint that is not torch's own or was called outside"
            " of what is watched, which hides the potentials inside it. Call"
            " `torch.utils.checkpoint.checkpoint(..., use_reentrant=False)` instead."
        )


def nodes_of_parameters(nodes: Collection[Node]) -> set[Node] | None:
    """Those that depend on a trained parameter of nodes, all below them included; None where all do, or none does."""
    leaves = [node for node in nodes if not node.next_functions]
    trained = [node for node in leaves if isinstance(getattr(node, "variable", None), nn.Parameter)]
    return None if len(trained) in (0, len(leaves)) else _above(trained, set(nodes))


def edges_below(edge: Edge) -> set[Edge]:
    """All edges on the ways from a tensor to what it is made of, its own included."""
    edges: set[Edge] = {edge}
    pending = [edge[0]]
    seen = {edge[0]}
    for node in pending:
        if node is not None:
            for following in node.next_functions:
                edges.add(following)
                if following[0] not in seen:
                    seen.add(following[0])
                    pending.append(following[0])
    return edges


def weights_of_map(node: Any) -> list[nn.Parameter]:
    """The trained weights with which a node of autograd's graph maps; none where it does something else."""
    if not _MAPS.fullmatch(node.name()):
        return []
    return [weight for following, _ in node.next_functions for weight in weight_at(following)]


def weight_at(node: Any) -> Iterator[nn.Parameter]:
    """The trained weight that a node gives, whole, or in another arrangement or type."""
    while node is not None and _ARRANGING.fullmatch(node.name()):
        node = node.next_functions[0][0]
    parameter = getattr(node, "variable", None)
    if isinstance(parameter, nn.Parameter) and parameter.ndim > 1:
        yield parameter


def is_map(node: Any) -> bool:
    """Whether a node maps by a trained weight; without gradient, by any."""
    return bool(_CALLS_OF_MAPS.fullmatch(node.name()) or weights_of_map(node))


def nodes_below(nodes: Iterable[Any]) -> list[Any]:
    """All nodes that can be reached from some, which are among them."""
    found = [node for node in dict.fromkeys(nodes) if node is not None]
    seen = set(found)
    for node in found:
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                found.append(following)
    return found


def nodes_between(starts: Iterable[Any], end: Any, stops: Container[Any]) -> set[Any]:
    """The nodes on the ways from some down to another one, without it, on which none of the stops lies in between.

    Args:
        starts: the nodes where the ways begin, which may be stops themselves.
        end: where they lead.
        stops: the others that no way goes past.
    """
    seen = {node for node in starts if node is not None and node is not end}
    pending = list(seen)
    for node in pending:
        for following, _ in node.next_functions:
            if following is not None and following not in seen and following not in stops:
                seen.add(following)
                pending.append(following)
    return _above([end], seen) - {end}


def _above(leaves: list[Node], nodes: set[Node]) -> set[Node]:
    """The nodes from which one of the leaves can be reached."""
    users: dict[Node, list[Node]] = defaultdict(list)
    for node in nodes:
        for following, _ in node.next_functions:
            if following is not None:
                users[following].append(node)
    above = set(leaves)
    pending = list(leaves)
    while pending:
        for user in users[pending.pop()]:
            if user not in above:
                above.add(user)
                pending.append(user)
    return above
