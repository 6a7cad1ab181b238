"""What is known of the tensors of a forward pass, and what becomes of it: potentials and the neurons they are of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from lightning_psp.capture.graph import Edge


class Keepable(Protocol):
    """What is kept of a potential."""

    def preserve(self, z: Tensor) -> None:
        """The potential is about to be overwritten."""

    def release(self) -> None:
        """The potential is none after all, or no longer needed."""


Kept = TypeVar("Kept", bound=Keepable)
# How a tensor follows from another one, value by value.
LINEAR, POLYNOMIAL, ACTIVATING_STEP = 0, 1, 2

# What a tensor is made of since the last weights: these, nonlinearities' results, or products of such results.
WEIGHED, ACTIVATED, GATED = 0, 1, 2


@dataclass
class Measured:
    """What a compiled function tells of a potential inside it, in place of which another tensor stands.

    Args:
        tensors: the sum of its squares and, if asked for, its sum over the batch.
        coefficient: the factor on the potential in what its gradient gets added; None where no gradient passes it.
        sizes: its number of values, its number of units and the size of its batch.
        results: to what depends on its nonlinearity.
        sources: to what it is made of outside the function; None where a trained parameter inside is part of that.
    """

    tensors: list[Tensor]
    coefficient: Tensor | None
    sizes: list[int]
    results: list[Edge]
    sources: list[Edge] | None


class Source:
    """The neurons of which tensors hold potentials, in one evaluation of them.

    Args:
        path: the module or parameter that they are known by; None where the place in the code has to tell.
        evaluation: the same object for all that one call of a module returned.
    """

    __slots__ = ("_evaluation", "is_around", "path", "place", "turn")

    def __init__(self, path: str | None, evaluation: object | None = None) -> None:
        self.path = path
        self.is_around = False  # whether that module computed them of what modules and parameters inside it gave
        self.place: str | None = None
        self.turn: tuple[dict[str, int], str, int] | None = None  # who counts the names of places, and which it is
        self._evaluation = evaluation

    @property
    def evaluation(self) -> object:
        """The same object for all parts of one passage."""
        # Not kept as an attribute: a reference to itself would outlive all others.
        return self if self._evaluation is None else self._evaluation

    @property
    def name(self) -> str | None:
        """The layer's name, where it is known yet."""
        return self.place if self.path is None else self.path


class Potential(Generic[Kept]):
    """One passage of a layer's potentials, or of a part of them, through a nonlinearity.

    Args:
        layer: name of the layer.
        evaluation: the same object for all parts of one passage.
        unit_dim: the dimension of the neurons.
        is_output: whether it is the output layer's.
    """

    part = 0  # which of the parts of its passage it is; known when outputs are
    units = 0
    enters_loss = False  # whether a loss's own softmax or sigmoid takes it
    kept: Kept | None = None
    edge: Edge | None = None  # to the potential, where a loss takes it
    entering: Any = None  # the node of the graph that gave the tensor
    measured: Measured | None = None
    is_differentiated = False  # whether a gradient that passed it may be part of a loss
    is_of_metric = False  # whether a network that a metric holds made it
    label = ""  # of a nonlinearity outside the network
    number_of_calls = 0  # of the network before that
    origin: Origin | None = None  # of the tensor

    def __init__(self, layer: str, evaluation: object, unit_dim: int, is_output: bool) -> None:
        self.layer = layer
        self.evaluation = evaluation
        self.unit_dim = unit_dim
        self.is_output = is_output
        self.enters_nonlinearity = not is_output  # whether a nonlinearity of the network reads it
        self.results: list[Edge] = []  # to what the nonlinearity gave


def arrange(potentials: list[Potential[Any]]) -> None:
    """Brings the passes of each layer into the order in which they were computed, and numbers their parts."""
    places: dict[str, list[int]] = {}
    for place, potential in enumerate(potentials):
        places.setdefault(potential.layer, []).append(place)
    for own in places.values():
        if len(own) > 1:
            passes = [potentials[place] for place in own]
            passes.sort(key=lambda potential: 0 if potential.origin is None else potential.origin.serial)
            for place, potential in zip(own, passes, strict=True):
                potentials[place] = potential
    parts: dict[tuple[int, str], int] = {}
    for potential in potentials:
        key = id(potential.evaluation), potential.layer
        potential.part = parts.get(key, 0)
        parts[key] = potential.part + 1


class Values:
    """Identity of the values of a tensor, kept by views and casts of it."""

    __slots__ = ("potentials",)

    def __init__(self) -> None:
        self.potentials: list[Potential[Any]] = []


class Softmax:
    """What entered a softmax, kept as long as its result may be the network's output.

    Args:
        entering: the tensor.
    """

    __slots__ = ("__weakref__", "entering", "weighs")

    def __init__(self, entering: Tensor | None) -> None:
        self.entering = entering
        self.weighs = False  # whether other tensors are weighed by the result, as by attention


class Origin:
    """What is known of one tensor; most of it is unknown of most tensors.

    Args:
        reference: holds the tensor weakly.
    """

    serial = 0  # counts the tensors of a step
    source: Source | None = None
    unit_dim = 1
    _values: Values | None = None
    is_made = False  # whether weights had a part in it
    is_weight = False  # whether it is a weight, or computed from one alone
    weight: str | None = None  # the parameter of which it is a view
    is_returned = False  # whether a network returned it, or a part or multiple of it
    giver: str | None = None  # its name where no module with weights gave it: what returned it, or the place of a loss
    weighings = 0  # how many weights have come one after another
    is_pooled = False  # whether it was summed, averaged or pooled
    is_bent = False  # whether it is no linear function of what the source's weights gave
    is_biased = False  # whether it is the sum of its parent and a weight
    is_guarded = False  # whether it is a function of what a bound keeps away from 0
    threshold: float | None = None  # the number with which another tensor was compared to make this mask
    made_of = WEIGHED
    parent: Origin | None = None  # of which it is a function value by value
    depth = 0
    step = LINEAR  # that leads from the parent to it
    whole: Origin | None = None  # of which it is a view, a part or a multiple
    passes: Sequence[Origin] = ()  # of one layer, of which it is the concatenation
    potential: Potential[Any] | None = None  # whose nonlinearity gave this tensor
    softmax: Softmax | None = None  # of which this tensor is the result or its logarithm
    sums: Values | None = None  # of which it is the sum
    is_below_largest = False  # whether it is a tensor less the larger of it and another
    is_largest = False  # whether it is the larger of two tensors in each place
    normalises: Values | None = None  # of which it is the logarithm of the sum of exponentials
    measured: Measured | None = None  # where it stands for a tensor inside a compiled function
    node: Any = None  # in the graph of what is computed without gradient

    def __init__(self, reference: Callable[[], Tensor | None]) -> None:
        self.reference = reference

    @property
    def values(self) -> Values:
        """The identity of the tensor's values."""
        if self._values is None:
            self._values = Values()
        return self._values

    @values.setter
    def values(self, values: Values) -> None:
        self._values = values

    @property
    def entering(self) -> Tensor | None:
        """Of which this tensor is the softmax or its logarithm."""
        return None if self.softmax is None else self.softmax.entering

    @property
    def path(self) -> str | None:
        """The module or parameter that the neurons are known by."""
        return None if self.source is None else self.source.path


def is_within(path: str, ancestor: str) -> bool:
    """Whether the module or parameter at `path` lies inside the module at `ancestor`."""
    return ancestor == "" or path.startswith(f"{ancestor}.")


def tensors_in(output: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists, mappings, dataclasses, distributions and their transforms."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (tuple, list)):
        for item in output:
            yield from tensors_in(item)
    elif isinstance(output, (dict, Mapping)):  # asking whether it is a dict takes less time
        for item in output.values():
            yield from tensors_in(item)
    elif is_dataclass(output) and not isinstance(output, type):
        for entry in fields(output):
            yield from tensors_in(getattr(output, entry.name, None))
    elif isinstance(output, (torch.distributions.Distribution, torch.distributions.Transform)):
        yield from tensors_in(list(vars(output).values()))
