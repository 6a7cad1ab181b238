"""Where tensors come from: the module whose output a tensor is, and which of its dimensions holds the neurons."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor
from torch.utils import swap_tensors

from lightning_psp.capture.nonlinearities import Nonlinearities, TorchFunction
from lightning_psp.gradient.graph import Edge
from lightning_psp.gradient.kernels import owns_storage
from lightning_psp.torch_private import is_held_elsewhere, swap_contents

Kept = TypeVar("Kept")
Handler = Callable[[TorchFunction, tuple[Any, ...], dict[str, Any]], Any]


@dataclass
class NetworkCall:
    """One outermost call of a module: within it, a repeated layer name is another layer."""

    repetitions: dict[str, int] = field(default_factory=dict)

    def number(self, name: str) -> str:
        """The name of the next layer that would be called `name`."""
        repetition = self.repetitions.get(name, 0)
        self.repetitions[name] = repetition + 1
        return f"{name}:{repetition}" if repetition else name


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


class Potential(Generic[Kept]):
    """One passage of a layer's potentials through its nonlinearity.

    Args:
        layer: name of the layer.
        unit_dim: the dimension of the neurons.
        is_output: whether it is the output layer's.
    """

    __slots__ = (
        "enters_loss",
        "is_differentiated",
        "is_output",
        "kept",
        "label",
        "layer",
        "measured",
        "number_of_calls",
        "results",
        "unit_dim",
        "units",
    )

    def __init__(self, layer: str, unit_dim: int, is_output: bool) -> None:
        self.layer = layer
        self.unit_dim = unit_dim
        self.units = 0
        self.is_output = is_output
        self.enters_loss = False  # whether a loss's own softmax or sigmoid takes it
        self.kept: Kept | None = None
        self.results: list[Edge] = []  # to what the nonlinearity gave
        self.measured: Measured | None = None
        self.is_differentiated = False  # whether a gradient that passed it may be part of a loss
        self.label = ""  # of a nonlinearity outside the network
        self.number_of_calls = 0  # of the network before that

    def add_result(self, result: Any) -> None:
        """Notes what a nonlinearity made of the potential."""
        if isinstance(result, Tensor):
            self.results.append((result.grad_fn, result.output_nr))


class Values:
    """Identity of the values of a tensor, kept by views and casts of it."""

    __slots__ = ("potentials",)

    def __init__(self) -> None:
        self.potentials: list[Potential[Any]] = []


class Origin:
    """What is known of one tensor.

    Args:
        tensor: the tensor, held weakly.
    """

    __slots__ = ("_values", "call", "entering", "measured", "path", "potential", "reference", "unit_dim")

    def __init__(self, tensor: Tensor) -> None:
        self.reference = weakref.ref(tensor)
        self.path: str | None = None  # of the innermost module whose output it is
        self.call: NetworkCall | None = None
        self.unit_dim = 1
        self._values: Values | None = None
        self.potential: Potential[Any] | None = None  # whose nonlinearity gave this tensor
        self.measured: Measured | None = None  # where it stands for a tensor inside a compiled function
        self.entering: Tensor | None = None  # of which this tensor is the softmax or its logarithm

    @property
    def values(self) -> Values:
        """The identity of the tensor's values."""
        if self._values is None:
            self._values = Values()
        return self._values

    @values.setter
    def values(self, values: Values) -> None:
        self._values = values


class Provenance:
    """Follows the tensors of one forward pass, by what modules return and by what functions do.

    Args:
        nonlinearities: the functions to follow.
        tracks_units: whether the dimension of the neurons is followed through sums and products.
    """

    def __init__(self, nonlinearities: Nonlinearities, tracks_units: bool) -> None:
        self.handlers: dict[TorchFunction, Handler] = {}
        if tracks_units:
            self.handlers.update(dict.fromkeys(nonlinearities.features_last, self._features_last))
        self.handlers.update(dict.fromkeys(nonlinearities.overwriting, self._overwriting))
        self.handlers.update(dict.fromkeys(nonlinearities.views, self._view))
        self.handlers.update(dict.fromkeys(nonlinearities.parts, self._part))
        self.handlers.update(dict.fromkeys(nonlinearities.rearrangements, self._rearrange))
        self._tracks_units = tracks_units
        self._origins: dict[int, Origin] = {}

    def find(self, tensor: Any) -> Origin | None:
        """The origin of this tensor, if anything is known of it."""
        origin = self._origins.get(id(tensor))
        # An id is used again once its tensor is gone.
        return origin if origin is not None and origin.reference() is tensor else None

    def of(self, tensor: Tensor) -> Origin:
        """The origin of this tensor, a new one if nothing is known of it."""
        origin = self._origins.get(id(tensor))
        return origin if origin is not None and origin.reference() is tensor else self.renew(tensor)

    def renew(self, tensor: Tensor) -> Origin:
        """A new origin for a tensor that holds new values."""
        origin = self._origins[id(tensor)] = Origin(tensor)
        return origin

    def record_result(self, result: Tensor, potential: Potential[Any]) -> None:
        """Notes that `result` is what a nonlinearity made of a potential."""
        origin = self.renew(result)
        origin.potential = potential
        if potential.unit_dim < result.ndim:
            origin.unit_dim = potential.unit_dim

    def can_be_replaced(self, tensor: Tensor) -> bool:
        """Whether :meth:`exchange` leaves no other holder of the tensor with other values than it had."""
        known = self.find(tensor)
        own = 0 if known is None else 1
        return (
            type(tensor) is Tensor
            and not tensor.is_leaf
            and not tensor.__dict__  # a user's attributes would stay with the other tensor
            and (known is None or not known.values.potentials)
            and weakref.getweakrefcount(tensor) <= own
            and not is_held_elsewhere(tensor)
            and owns_storage(tensor)
        )

    def exchange(self, tensor: Tensor, other: Tensor) -> None:
        """Makes two tensors change places; what is known of `tensor` is known of `other` then."""
        origin = self.of(tensor)
        del self._origins[id(tensor)]
        del origin.reference  # tensors with weak references cannot change places
        swap(tensor, other)
        origin.reference = weakref.ref(other)
        self._origins[id(other)] = origin

    def record_module(self, path: str, call: NetworkCall | None, output: Any) -> None:
        """Notes that the tensors in `output` are what the module at `path` returned."""
        for tensor in (output,) if isinstance(output, Tensor) else tensors_in(output):
            origin = self.of(tensor)
            if origin.path is None or not is_within(origin.path, path):  # else a module inside this one made it
                origin.path, origin.call = path, call

    def clear(self) -> None:
        """Forgets every tensor."""
        self._origins.clear()

    def _view(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        self._derive(args, result, has_same_values=True)
        return result

    def _part(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        self._derive(args, result, has_same_values=False)
        return result

    def _rearrange(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = self._part(func, args, kwargs)
        origin = self.find(args[0]) if args else None
        unit_dim = -1 if args and args[0].ndim == 2 else 1 if origin is None else origin.unit_dim
        for tensor in tensors_in(result):
            self.of(tensor).unit_dim = unit_dim
        return result

    def _derive(self, args: tuple[Any, ...], result: Any, has_same_values: bool) -> None:
        origin = self.find(args[0]) if args else None
        if origin is None:
            if not self._tracks_units or not args or not isinstance(args[0], Tensor):
                return
            origin = self.of(args[0])  # a view may move the dimension of its units
        for tensor in tensors_in(result):
            if tensor is args[0]:
                continue
            derived = self.renew(tensor)
            derived.path, derived.call = origin.path, origin.call
            derived.potential, derived.entering = origin.potential, origin.entering
            derived.unit_dim = _unit_dim_of_view(args[0], tensor, origin.unit_dim, has_same_values)
            if has_same_values:
                derived.values = origin.values

    def _overwriting(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        origin = self.find(args[0]) if args else None
        if origin is not None:
            # No module returned these values.
            self.renew(args[0]).unit_dim = origin.unit_dim
        return result

    def follow_units(self, args: tuple[Any, ...], result: Any) -> None:
        """Takes the result of any other function to have its units where an argument of as many dimensions has."""
        if not isinstance(result, Tensor) or result.ndim < 3:
            return
        for tensor in tensors_in(args):
            origin = self.find(tensor)
            if origin is not None and origin.unit_dim != 1 and tensor.ndim == result.ndim and result is not tensor:
                self.of(result).unit_dim = -1
                return

    def _features_last(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        for tensor in tensors_in(result):
            self.of(tensor).unit_dim = -1
        return result


def _unit_dim_of_view(source: Tensor, view: Tensor, unit_dim: int, has_same_values: bool) -> int:
    """The dimension of a view that steps through memory as the units of its source do; 1 where there is none."""
    if source.ndim < 2 or source.shape == view.shape:
        return unit_dim
    size, step = source.shape[unit_dim], source.stride(unit_dim)
    found = [
        dim for dim in range(view.ndim) if view.stride(dim) == step and (view.shape[dim] == size or not has_same_values)
    ]
    return found[-1] if len(found) == 1 else 1


def swap(tensor: Tensor, other: Tensor) -> None:
    """Has two tensors change places, as `torch.utils.swap_tensors` does, without its checks where none can fail."""
    if _is_plain(tensor) and _is_plain(other):
        swap_contents(tensor, other)
    else:
        swap_tensors(tensor, other)


def _is_plain(tensor: Tensor) -> bool:
    """Whether nothing else holds a tensor, and nothing belongs to it but its values and its graph."""
    return (
        type(tensor) is Tensor
        and not tensor.__dict__
        and not weakref.getweakrefcount(tensor)
        and not is_held_elsewhere(tensor)
    )


def is_within(path: str, ancestor: str) -> bool:
    """Whether the module at `path` lies inside the one at `ancestor`."""
    return ancestor == "" or path.startswith(f"{ancestor}.")


def tensors_in(output: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists, dicts and dataclasses."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (tuple, list)):
        for item in output:
            yield from tensors_in(item)
    elif isinstance(output, dict):
        for item in output.values():
            yield from tensors_in(item)
    elif is_dataclass(output) and not isinstance(output, type):
        for entry in fields(output):
            yield from tensors_in(getattr(output, entry.name))
