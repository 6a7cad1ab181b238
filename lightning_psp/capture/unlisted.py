"""Weights whose results a loss reaches past every layer: perhaps an output layer that nobody sees."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from lightning_psp.capture.graph import Edge
from lightning_psp.capture.origin import Potential
from lightning_psp.capture.witness import is_foreign_function
from lightning_psp.torch_private.autograd import function_of

# Nodes of the graph of autograd that map by a weight, and those that only arrange or cast one.
_MAPS = re.compile(r"(addmm|addmv|mm|mv|bmm|baddbmm|linear|convolution\w*)backward\d*", re.IGNORECASE)
_ARRANGING = re.compile(r"(t|transpose|permute|view|unsafeview|reshapealias|tocopy)backward\d*", re.IGNORECASE)


class Unlisted(NamedTuple):
    """What a loss reaches past all potentials.

    Args:
        weights: the trained weights of maps.
        functions: the `torch.autograd.Function`s that are given trained weights, each with the first of them: what they
            compute of these, such as an integral of a network, shows no potentials.
    """

    weights: list[nn.Parameter]
    functions: list[tuple[type[torch.autograd.Function], nn.Parameter]]


def past_layers(losses: Sequence[Edge], potentials: Iterable[Potential[Any]]) -> Unlisted:
    """What losses reach past all potentials.

    Args:
        losses: to the losses.
        potentials: those of all layers.
    """
    weights: dict[int, nn.Parameter] = {}
    functions: list[tuple[type[torch.autograd.Function], nn.Parameter]] = []
    for node, (first, *_) in _weighing_past(losses, potentials):
        if is_foreign_function(node):
            functions.append((function_of(node), first))
        else:
            weights[id(first)] = first
    return Unlisted(list(weights.values()), functions)


def _weighing_past(
    losses: Sequence[Edge], potentials: Iterable[Potential[Any]]
) -> Iterator[tuple[Any, list[nn.Parameter]]]:
    """The nodes that map by weights, and those weights, between losses and all potentials."""
    known = set().union(*map(_edges_of, potentials))
    seen = set(losses)
    pending = [edge for edge in losses if edge not in known]
    for node, _ in pending:
        if node is None:
            continue
        is_map, is_function = bool(_MAPS.fullmatch(node.name())), is_foreign_function(node)
        if is_map or is_function:
            weights = [weight for following, _ in node.next_functions for weight in _weight_at(following)]
            if weights and is_function:
                yield node, weights
            elif is_map and len(weights) == 1:  # else a product of weights, as some penalties on them have it
                yield node, weights
                continue
        for edge in node.next_functions:
            if edge not in seen and edge not in known:
                seen.add(edge)
                pending.append(edge)


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
