"""Where tensors come from: the weights that made them, which of their dimensions holds the neurons, what they are of.

Every function call of a forward pass passes by here. What is known of a tensor is its `Origin`; it says

- of which neurons the tensor holds potentials (`Source`): the module whose output it is, or the weight that a function
  was given, handed on by views, pooling, dropout and the like;
- whether it is the same tensor under another shape, or a part or a multiple of another one;
- of which tensor it is a function value by value, for activations that are written out;
- whether it was made of the results of nonlinearities alone.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import swap_tensors

from lightning_psp.capture.functions import (
    ACTIVATING,
    FEATURES_LAST,
    SUMS,
    Role,
    TorchFunction,
)
from lightning_psp.gradient.graph import Edge
from lightning_psp.gradient.kernels import owns_storage
from lightning_psp.torch_private import is_held_elsewhere, swap_contents


class Keepable(Protocol):
    """What is kept of a potential."""

    def preserve(self) -> None:
        """The potential is about to be overwritten."""

    def release(self) -> None:
        """The potential is none after all, or no longer needed."""


Kept = TypeVar("Kept", bound=Keepable)
Handler = Callable[[TorchFunction, tuple[Any, ...], dict[str, Any]], Any]
Note = Callable[[Tensor], None]

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

    __slots__ = ("evaluation", "path", "place", "turn")

    def __init__(self, path: str | None, evaluation: object | None = None) -> None:
        self.path = path
        self.place: str | None = None
        self.turn: tuple[dict[str, int], str, int] | None = None  # who counts the names of places, and which it is
        self.evaluation = self if evaluation is None else evaluation

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

    __slots__ = (
        "enters_loss",
        "evaluation",
        "is_differentiated",
        "is_output",
        "kept",
        "label",
        "layer",
        "measured",
        "number_of_calls",
        "origin",
        "part",
        "results",
        "unit_dim",
        "units",
    )

    kept: Kept | None

    def __init__(self, layer: str, evaluation: object, unit_dim: int, is_output: bool) -> None:
        self.layer = layer
        self.evaluation = evaluation
        self.part = 0  # which of the parts of its passage it is; known when outputs are
        self.unit_dim = unit_dim
        self.units = 0
        self.is_output = is_output
        self.enters_loss = False  # whether a loss's own softmax or sigmoid takes it
        self.kept = None
        self.results: list[Edge] = []  # to what the nonlinearity gave
        self.measured: Measured | None = None
        self.is_differentiated = False  # whether a gradient that passed it may be part of a loss
        self.label = ""  # of a nonlinearity outside the network
        self.number_of_calls = 0  # of the network before that
        self.origin: Origin | None = None  # of the tensor


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
    is_pooled = False  # whether it was summed, averaged or pooled
    is_bent = False  # whether it is no linear function of what the source's weights gave
    made_of = WEIGHED
    parent: Origin | None = None  # of which it is a function value by value
    depth = 0
    step = LINEAR  # that leads from the parent to it
    whole: Origin | None = None  # of which it is a view, a part or a multiple
    potential: Potential[Any] | None = None  # whose nonlinearity gave this tensor
    entering: Tensor | None = None  # of which this tensor is the softmax or its logarithm
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
    def path(self) -> str | None:
        """The module or parameter that the neurons are known by."""
        return None if self.source is None else self.source.path


class Join(NamedTuple):
    """A tensor at which the ways of several others part that come together again in an activation.

    Args:
        origin: the tensor.
        between: what was computed of it on the way.
    """

    origin: Origin
    between: list[Origin]


class Provenance:
    """Follows the tensors of one forward pass.

    Args:
        tracks_units: whether the dimension of the neurons is followed through sums and products.
        name_of_parameter: gives the name of a parameter of the network, or None.
    """

    def __init__(self, tracks_units: bool, name_of_parameter: Callable[[Tensor], str | None]) -> None:
        self.handlers: dict[Role, Handler] = {
            Role.VIEW: self._view,
            Role.PART: self._part,
            Role.REARRANGEMENT: self._rearrange,
            Role.HANDING: self._hand_on,
            Role.WEIGHING: self._weigh,
            Role.ATTENTION: self._attend,
            Role.BROADCAST: self._broadcast,
            Role.CONSTANT: self._ignore,
        }
        self._tracks_units = tracks_units
        self._name_of_parameter = name_of_parameter
        self._origins: dict[int, Origin] = {}
        self._serial = 0
        self._bases: dict[int, Tensor] = {}  # what a tensor that is still there is a view of
        self._held: deque[Tensor] = deque(maxlen=4)  # of which the last copies and multiples were taken

        def forget(reference: weakref.ref[Tensor]) -> None:
            key = reference.key  # type: ignore[attr-defined]
            known = origins.get(key)
            if known is not None and known.reference is reference:
                del origins[key]
                bases.pop(key, None)

        origins, bases = self._origins, self._bases
        self._forget = forget

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
        before = self._origins.get(id(tensor))
        if before is not None and before.reference() is tensor:
            before.reference = _gone
            self._bases.pop(id(tensor), None)
        origin = self._origins[id(tensor)] = Origin(weakref.KeyedRef(tensor, self._forget, id(tensor)))
        self._serial += 1
        origin.serial = self._serial
        if isinstance(tensor, nn.Parameter):
            origin.weight = self._name_of_parameter(tensor)
            origin.is_weight = origin.weight is not None
        return origin

    def known(self, tensor: Any) -> Origin | None:
        """The origin of a tensor of which anything is known, or that is a weight; None for anything else."""
        origin = self._origins.get(id(tensor))
        if origin is not None and origin.reference() is tensor:
            return origin
        return self.renew(tensor) if isinstance(tensor, nn.Parameter) else None

    def record_result(self, result: Tensor, z: Origin, potential: Potential[Any] | None) -> None:
        """Notes that `result` is what a nonlinearity made of the tensor `z`, which is a potential or none."""
        origin = self.renew(result)
        origin.potential = potential
        origin.is_made, origin.made_of = True, ACTIVATED
        if _shape_of(z) in (None, result.shape):
            self._follow(origin, z, ACTIVATING_STEP)
        if z.unit_dim < result.ndim:
            origin.unit_dim = z.unit_dim

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
        origin.reference = weakref.KeyedRef(other, self._forget, id(other))
        self._origins[id(other)] = origin

    def copy(self, tensor: Tensor, other: Tensor) -> None:
        """Notes that `other` is a copy of a tensor, which takes its place."""
        origin = self.of(tensor)
        copied = self.renew(other)
        self._share(copied, origin)
        copied.unit_dim, copied.whole = origin.unit_dim, origin.whole
        copied.parent, copied.step, copied.depth = origin.parent, origin.step, origin.depth

    def record_module(self, path: str, call: object, tensors: Iterable[Tensor]) -> None:
        """Notes that the module at `path`, which has weights, returned tensors in one call."""
        for tensor in tensors:
            origin = self.of(tensor)
            source = origin.source
            # Else a module or a parameter inside this one made it.
            if source is None or source.path is None or not is_within(source.path, path):
                origin.source = Source(path, call if source is None or source.path != path else source.evaluation)
                if source is not None and source.path is None:
                    origin.source.place = source.place
            origin.is_made = True

    def clear(self) -> None:
        """Forgets every tensor."""
        self._origins.clear()
        self._bases.clear()
        self._held.clear()

    # --- the whole of which a tensor is a part ---------------------------------------------------------------------

    def whole_of(self, tensor: Tensor) -> Tensor:
        """The tensor of which this one is a view, a part or a multiple, as far as it is still there."""
        origin = self.find(tensor)
        found = tensor
        while origin is not None and origin.whole is not None:
            origin = origin.whole
            whole = origin.reference()
            if whole is not None:
                found = whole
        return found

    # --- functions that say of themselves what they do -------------------------------------------------------------

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
        source = args[0] if args else None
        if not isinstance(source, Tensor) or is_lazy(source):
            return
        origin = self.known(source)
        if origin is None:
            if not self._tracks_units:
                return
            origin = self.of(source)  # a view may move the dimension of its units
        for tensor in (result,) if isinstance(result, Tensor) else tensors_in(result):
            if tensor is source:
                continue
            derived = self.renew(tensor)
            self._share(derived, origin)
            derived.potential, derived.entering = origin.potential, origin.entering
            derived.unit_dim = _unit_dim_of_view(source, tensor, origin.unit_dim, has_same_values)
            derived.whole = origin
            if has_same_values:
                derived.values = origin.values
                if tensor.shape == source.shape:
                    self._follow(derived, origin, LINEAR)
            if origin.is_made and not origin.is_weight:
                if tensor._is_view() or (tensor.is_inference() and not has_same_values):
                    self._bases[id(tensor)] = source
                else:
                    self._hold(source, origin)

    def _hand_on(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        origin = self._first(args, kwargs)
        shape = None if origin is None else _shape_of(origin)
        if origin is not None:
            origin.is_pooled = True
        result = func(*args, **kwargs)
        if origin is not None:
            for tensor in (result,) if isinstance(result, Tensor) else tensors_in(result):
                if tensor.dtype.is_floating_point:
                    derived = self.renew(tensor)
                    self._share(derived, origin)
                    derived.potential = origin.potential if tensor.shape == shape else None
                    if origin.unit_dim != 1 and tensor.ndim >= 3:
                        derived.unit_dim = -1
        return result

    def _weigh(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        weight: str | None = None
        is_made, dims = False, 0
        first: Origin | None = None
        for position, value in enumerate([*args, *kwargs.values()]):
            if not isinstance(value, Tensor):
                continue
            origin = self.known(value)
            if origin is None:
                continue
            if origin.is_weight:
                is_made = True
                # Of a bias, the name says nothing.
                is_weight = value.ndim > 1 or _is_normalisation(func)
                if origin.weight is not None and is_weight and value.ndim > dims:
                    weight, dims = origin.weight, value.ndim
            elif origin.is_made:
                is_made = True
                if position == 0:
                    first = origin
        if not is_made and func not in FEATURES_LAST:
            return result
        for tensor in (result,) if isinstance(result, Tensor) else tensors_in(result):
            if tensor.dtype.is_floating_point:
                origin = self.renew(tensor)
                origin.is_made = is_made
                if weight is not None:
                    origin.source = Source(weight.removesuffix(".weight") if weight != "weight" else "")
                elif first is not None and _is_normalisation(func):
                    origin.source = first.source
                if func in FEATURES_LAST:
                    origin.unit_dim = -1
        return result

    def _attend(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        self.note_other((args, kwargs), result)
        for tensor in tensors_in(result):
            self.of(tensor).unit_dim = -1
        return result

    def _broadcast(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        results = func(*args, **kwargs)
        given = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
        for tensor, result in zip(given, results, strict=True):
            self._derive((tensor,), result, has_same_values=tensor.shape == result.shape)
        return results

    def _ignore(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    def note_other(self, args: tuple[Any, ...], result: Any) -> None:
        """Notes what follows for the result of any other function: whether weights had a part in it, its units."""
        made, dims = False, set()
        for tensor in tensors_in(args):
            origin = self._origins.get(id(tensor))
            if origin is not None and origin.reference() is tensor:
                made = made or origin.is_made or origin.is_weight
                if origin.unit_dim != 1:
                    dims.add(tensor.ndim)
        if not made and not dims:
            return
        for tensor in (result,) if isinstance(result, Tensor) else tensors_in(result):
            if tensor.dtype.is_floating_point and not (args and tensor is args[0]):
                origin = self.renew(tensor)
                origin.is_made = made
                if self._tracks_units and tensor.ndim >= 3 and tensor.ndim in dims:
                    origin.unit_dim = -1

    # --- sums, products and other functions value by value ---------------------------------------------------------

    def compute(
        self, func: TorchFunction, role: Role, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Join | None, Note]:
        """What a function value by value makes of what is known of its arguments.

        Returns:
            The tensor at which the arguments' ways part, if the result closes an activation that is written out; and a
            function that notes what follows for the result.
        """
        made, number_of_data, has_weights = self._sort(args if not kwargs else (*args, *kwargs.values()))
        if not made:
            # A function of weights alone is a weight, too.
            return None, (self.note_weight if has_weights and not number_of_data else _note_nothing)
        is_arithmetic = role is Role.ARITHMETIC
        is_sum = func in SUMS
        step = ACTIVATING_STEP if func in ACTIVATING else LINEAR if is_arithmetic else POLYNOMIAL
        if len(made) == 1 and not (is_sum and number_of_data):
            origin = made[0]
            if is_arithmetic and _is_quotient(func) and not _is_first(origin, args):
                step = POLYNOMIAL
            is_multiple = step == LINEAR and not has_weights
            return None, lambda result: self._note_function(result, origin, step, is_multiple)
        meeting, way, between = (None, LINEAR, []) if is_sum and number_of_data else _meet(made)
        way = max(way, step, LINEAR if is_sum else POLYNOMIAL)
        made_of = _made_of(made, is_sum)
        is_same = all(origin.source is made[0].source for origin in made) and not (is_sum and number_of_data)
        source = made[0].source if is_same else None
        is_bent = not is_sum or any(origin.is_bent for origin in made)
        unit_dim = next((origin.unit_dim for origin in made if origin.unit_dim != 1), 1)

        def note(result: Tensor) -> None:
            origin = self.renew(result)
            origin.is_made, origin.made_of, origin.is_bent = True, made_of, is_bent
            if self._tracks_units and unit_dim != 1 and result.ndim >= 3:
                origin.unit_dim = -1
            if meeting is not None:
                self._follow(origin, meeting, way)
            if way < ACTIVATING_STEP:
                origin.source = source
            if is_sum and len(made) == 2 and made[1].normalises is made[0].values:
                origin.entering = made[0].reference()  # a softmax that is written out

        is_join = meeting is not None and way == ACTIVATING_STEP
        return (Join(meeting, between) if is_join else None), note  # type: ignore[arg-type]

    def _sort(self, values: Iterable[Any]) -> tuple[list[Origin], int, bool]:
        """The tensors that weights made, the number of those that are data, and whether weights are among them."""
        made, number_of_data, has_weights = [], 0, False
        for value in values:
            if isinstance(value, Tensor):
                origin = self.known(value)
                if origin is not None and (origin.is_weight or (origin.is_made and value.ndim == 0)):
                    has_weights = True
                elif value.ndim > 0:
                    if origin is not None and origin.is_made:
                        made.append(origin)
                    else:
                        number_of_data += 1
        return made, number_of_data, has_weights

    def _note_function(self, result: Tensor, origin: Origin, step: int, is_multiple: bool) -> None:
        tensor = origin.reference()
        derived = self.renew(result)
        self._share(derived, origin)
        derived.is_bent = origin.is_bent or step != LINEAR
        if step == LINEAR:
            derived.potential = origin.potential
        if origin.unit_dim < result.ndim:
            derived.unit_dim = origin.unit_dim
        if tensor is None or tensor.shape == result.shape:
            self._follow(derived, origin, step)
        if is_multiple:
            derived.whole = origin
            if tensor is not None:
                self._hold(tensor, origin)

    def argument(self, args: tuple[Any, ...]) -> Origin | None:
        """What is known of the first tensor among arguments, where weights had a part in it."""
        for value in args:
            if isinstance(value, Tensor):
                origin = self.find(value)
                return origin if origin is not None and origin.is_made else None
        return None

    def note_weight(self, result: Tensor) -> None:
        """Notes that a tensor was computed of weights alone."""
        self.renew(result).is_weight = True

    def overwrite(
        self, role: Role | None, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Join | None, Note]:
        """As :meth:`compute`, for a function that overwrites its first argument."""
        if role in (Role.ARITHMETIC, Role.POINTWISE):
            return self.compute(func, role, args, kwargs)
        origin = self._first(args, kwargs)
        if origin is None:
            return None, _note_nothing

        def note(result: Tensor) -> None:
            derived = self.renew(result)
            if role is Role.HANDING:
                self._share(derived, origin)
            derived.is_made, derived.unit_dim = origin.is_made, origin.unit_dim

        return None, note

    # --- help ------------------------------------------------------------------------------------------------------

    def _first(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Origin | None:
        tensor = args[0] if args else kwargs.get("input")
        return self.known(tensor) if isinstance(tensor, Tensor) else None

    @staticmethod
    def _share(derived: Origin, origin: Origin) -> None:
        if origin.source is None and not origin.is_weight:
            origin.source = Source(None)
        derived.source = origin.source
        derived.is_made, derived.made_of, derived.is_bent = origin.is_made, origin.made_of, origin.is_bent
        derived.is_weight, derived.weight = origin.is_weight, origin.weight

    @staticmethod
    def _follow(origin: Origin, parent: Origin, step: int) -> None:
        origin.parent, origin.step, origin.depth = parent, step, parent.depth + 1

    def _hold(self, tensor: Tensor, origin: Origin) -> None:
        """Keeps a tensor for a while that may turn out to be the output layer's, of which a copy goes on."""
        if origin.is_made and origin.path is not None:
            self._held.append(tensor)


def _note_nothing(result: Tensor) -> None:
    """Nothing is known."""


def _gone() -> None:
    """In place of a reference to a tensor that was overwritten."""


def _is_first(origin: Origin, args: tuple[Any, ...]) -> bool:
    return bool(args) and origin.reference() is args[0]


def _shape_of(origin: Origin) -> torch.Size | None:
    tensor = origin.reference()
    return None if tensor is None else tensor.shape


def _is_normalisation(func: TorchFunction) -> bool:
    return "norm" in getattr(func, "__name__", "")


def _is_quotient(func: TorchFunction) -> bool:
    return "div" in getattr(func, "__name__", "")


def _meet(origins: list[Origin]) -> tuple[Origin | None, int, list[Origin]]:
    """The tensor of which all of these are functions value by value, the kind of the ways from there, and the ways."""
    meeting, way, between = origins[0], LINEAR, []
    for origin in origins[1:]:
        first, second = meeting, origin
        while first is not second:
            if first.depth < second.depth:
                first, second = second, first
            way = max(way, first.step)
            between.append(first)
            if first.parent is None:
                return None, LINEAR, []
            first = first.parent
        meeting = first
    return meeting, way, between


def _made_of(known: list[Origin], is_sum: bool) -> int:
    kinds = [origin.made_of for origin in known if origin.is_made]
    if not kinds or WEIGHED in kinds:
        return WEIGHED
    if is_sum:
        # A sum of activations is a potential like any other; one with a gate's product is a state.
        return GATED if GATED in kinds else ACTIVATED if len(kinds) == 1 else WEIGHED
    return GATED if len(kinds) > 1 else kinds[0]


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
    """Whether the module or parameter at `path` lies inside the module at `ancestor`."""
    return ancestor == "" or path.startswith(f"{ancestor}.")


def tensors_in(output: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists, dicts, dataclasses and distributions."""
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
            yield from tensors_in(getattr(output, entry.name, None))
    elif isinstance(output, torch.distributions.Distribution):
        yield from tensors_in(list(vars(output).values()))
