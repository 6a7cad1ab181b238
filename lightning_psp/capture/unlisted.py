"""Weights whose results a loss reaches past every layer: perhaps an output layer that nobody sees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from lightning_psp.capture.graph import Edge, weight_at, weights_of_map
from lightning_psp.capture.origin import Potential
from lightning_psp.capture.witness import is_foreign_function
from lightning_psp.torch_private.autograd import function_of


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
    potentials = [*potentials]
    known = set().union(*map(_edges_of, potentials))
    # Where a backward pass has let go of what nonlinearities gave.
    entering = {potential.entering for potential in potentials if not potential.results}
    seen = set(losses)
    pending = [edge for edge in losses if edge not in known]
    for node, _ in pending:
        if node is None or node in entering:
            continue
        if is_foreign_function(node):
            weights = [weight for following, _ in node.next_functions for weight in weight_at(following)]
            if weights:
                yield node, weights
        elif len(weights := weights_of_map(node)) == 1:  # else a product of weights, as some penalties on them have it
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
