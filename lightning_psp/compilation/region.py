"""A compiled graph, as a capture needs to know it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from lightning_psp.compilation.rewriting import Place, Point


class Mention(NamedTuple):
    """A tensor that something was seen to happen to.

    Args:
        points: the potentials that it is, by number; several where several nonlinearities read it.
        is_result: whether it is the result of their nonlinearity.
        place: the input that it is.
    """

    points: list[int]
    is_result: bool = False
    place: Place | None = None


@dataclass(frozen=True)
class Neurons:
    """The neurons of which tensors of a graph hold potentials, as :class:`~lightning_psp.capture.origin.Source`.

    Args:
        path: the module or parameter that they are known by.
        place: else the place in the code, as far as it is named.
        is_counted: whether runs of the graph have to tell which of the places of this name it is.
        evaluation: the same number for all that one call of a module returned.
        is_around: whether that module computed them of what modules and parameters inside it gave.
        input: the number of the input whose neurons they are, where runs of the graph know a name for these.
    """

    path: str | None
    place: str | None
    is_counted: bool
    evaluation: int
    is_around: bool
    input: int | None

    @property
    def name(self) -> str:
        """The layer's name, as far as it is known."""
        return (self.place if self.path is None else self.path) or "output"


@dataclass(frozen=True)
class ResultOrigin:
    """What is known of a result of a graph, as :class:`~lightning_psp.capture.origin.Origin` holds it."""

    place: Place
    source: int | None
    unit_dim: int
    is_made: bool
    is_weight: bool
    is_bent: bool
    made_of: int
    mention: Mention
    entering: Mention | None
    whole: Mention | None
    weighings: int


@dataclass(frozen=True)
class Returned:
    """A tensor that may be the output layer, as :class:`~lightning_psp.capture.outputs.Target` holds it."""

    edges: list[Place]
    mention: Mention
    path: str
    may_be_term: bool
    made_of: list[Place] | None = None


class UnseenCall(NamedTuple):
    """A call of a function of which activations are made, and that no potential of the graph accounts for.

    Args:
        place: where it is.
        remedy: what to name as an activation.
        results: what depends on its result.
        kin: the input and the results of which its argument is a function value by value, and those that are one of its
            result.
    """

    place: str
    remedy: str
    results: list[Place]
    kin: list[Place]


class WayInside(NamedTuple):
    """A way back in the graph, as :class:`~lightning_psp.capture.outputs.Way`, from one of its results.

    Args:
        start: the result.
        end: another result that it is made of, or an input.
        is_of_terms: whether it goes by sums, means and factors alone.
        is_beside: whether it goes past what enters losses in the graph.
    """

    start: Place
    end: Place
    is_of_terms: bool
    is_beside: bool


@dataclass
class Region:
    """A compiled graph, as a capture needs to know it."""

    prefix: str  # path of the module in whose forward the graph was made
    number_of_results: int
    coefficients: list[tuple[torch.device, torch.dtype]]
    sources: list[Neurons] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    origins: list[ResultOrigin] = field(default_factory=list)
    calls: list[tuple[list[Returned], list[Place], bool]] = field(default_factory=list)
    inputs_of_losses: list[Returned] = field(default_factory=list)
    log_softmaxes: list[Returned] = field(default_factory=list)  # what entered those that are results
    unseen: list[UnseenCall] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)  # names of those that are used
    ways: list[WayInside] = field(default_factory=list)
