"""Weights whose results a loss reaches past every layer: perhaps an output layer that nobody sees."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from lightning_psp.capture.graph import Edge
from lightning_psp.capture.origin import Potential

# Nodes of the graph of autograd that map by a weight, and those that only arrange or cast one.
_MAPS = re.compile(r"(addmm|addmv|mm|mv|bmm|baddbmm|linear|convolution\w*)backward\d*", re.IGNORECASE)
_ARRANGING = re.compile(r"(t|transpose|permute|view|unsafeview|reshapealias|tocopy)backward\d*", re.IGNORECASE)


def weights_past(losses: Sequence[Edge], potentials: Iterable[Potential[Any]]) -> list[nn.Parameter]:
    """The trained weights of linear maps and convolutions from whose result a loss is made past all potentials.

    Args:
        losses: to the losses.
        potentials: those of all layers.
    """
    known = set().union(*map(_edges_of, potentials))
    found: dict[int, nn.Parameter] = {}
    seen = set(losses)
    pending = [edge for edge in losses if edge not in known]
    for node, _ in pending:
        if node is None:
            continue
        if _MAPS.fullmatch(node.name()):
            weights = [weight for following, _ in node.next_functions for weight in _weight_at(following)]
            if len(weights) == 1:  # else a product of weights, as some penalties on them have it
                found[id(weights[0])] = weights[0]
                continue
        for edge in node.next_functions:
            if edge not in seen and edge not in known:
                seen.add(edge)
                pending.append(edge)
    return list(found.values())


def _edges_of(potential: Potential[Any]) -> Iterator[Edge]:
    yield from potential.results
    if potential.edge is not None:
        yield potential.edge
    z = None if potential.origin is None else potential.origin.reference()
    if z is not None:
        yield z.grad_fn, z.output_nr


def _weight_at(node: Any) -> Iterator[nn.Parameter]:
    while node is not None and _ARRANGING.fullmatch(node.name()):
        node = node.next_functions[0][0]
    parameter = getattr(node, "variable", None)
    if isinstance(parameter, nn.Parameter) and parameter.ndim > 1:
        yield parameter
