"""Where tensors come from: the weights that made them, which of their dimensions holds the neurons, what they are of.

Every function call of a forward pass passes by here. What is known of a tensor is its `Origin`; it says

- of which neurons the tensor holds potentials (`Source`): the module whose output it is, or the weight that a function
  was given, handed on by views, pooling, dropout and the like;
- whether it is the same tensor under another shape, or a part or a multiple of another one;
- of which tensor it is a function value by value, for activations that are written out;
- whether it was made of the results of nonlinearities alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_psp.capture.functions import (
    ADDING_TO_FIRST,
    FEATURES_LAST,
    SUMMING,
    WITHOUT_BIAS,
    Handler,
    Role,
    TorchFunction,
)
from lightning_psp.capture.origin import LINEAR, Origin, Softmax, Source, tensors_in
from lightning_psp.capture.origins import Origins, shape_of
from lightning_psp.torch_private.tensors import is_view


class Provenance:
    """Follows tensors through functions that say of themselves what they do.

    Args:
        origins: keeps what is known of tensors.
        tracks_units: whether the dimension of the neurons is followed through any function.
    """

    def __init__(self, origins: Origins, tracks_units: bool) -> None:
        self.split_weight: str | None = None  # of which this process computes with a part
        self._origins = origins
        self._tracks_units = tracks_units

    def handlers(self) -> dict[Role, Handler]:
        """What to do with a call of a function by what it gives."""
        return {
            Role.VIEW: self._view,
            Role.PART: self._part,
            Role.REARRANGEMENT: self._rearrange,
            Role.HANDING: self._hand_on,
            Role.ATTENTION: self._attend,
            Role.JOINING: self._join,
            Role.BROADCAST: self._broadcast,
            Role.CONSTANT: self._ignore,
        }

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
        origin = self._origins.find(args[0]) if args else None
        unit_dim = -1 if args and args[0].ndim == 2 else 1 if origin is None else origin.unit_dim
        for tensor in tensors_in(result):
            self._origins.of(tensor).unit_dim = unit_dim
        return result

    def _derive(self, args: tuple[Any, ...], result: Any, has_same_values: bool) -> None:
        source = args[0] if args else None
        if not isinstance(source, Tensor) or is_lazy(source):
            return
        origin = self._origins.known(source) or self._origins.of(source)  # of data, the values may be met again
        for tensor in (result,) if isinstance(result, Tensor) else tensors_in(result):
            if tensor is source:
                continue
            derived = self._origins.renew(tensor)
            self._origins.share(derived, origin)
            derived.potential, derived.softmax = origin.potential, origin.softmax
            derived.unit_dim = _unit_dim_of_view(source, tensor, origin.unit_dim, has_same_values)
            derived.whole = origin
            if has_same_values:
                derived.values = origin.values
                if tensor.shape == source.shape:
                    self._origins.follow(derived, origin, LINEAR)
            if origin.is_made and not origin.is_weight:
                if is_view(tensor) or (tensor.is_inference() and not has_same_values):
                    self._origins.hold_base(tensor, source)
                else:
                    self._origins.hold(source, origin)

    def _hand_on(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        origin = self._first(args, kwargs)
        shape = None if origin is None else shape_of(origin)
        if origin is not None:
            origin.is_pooled = True
            if origin.softmax is not None and _is_dropout(func):
                self._note_weights(origin.softmax)
        result = func(*args, **kwargs)
        if origin is not None:
            for tensor in (result,) if isinstance(result, Tensor) else tensors_in(result):
                if tensor.dtype.is_floating_point:
                    derived = self._origins.renew(tensor)
                    self._origins.share(derived, origin)
                    derived.is_pooled = True
                    derived.potential = origin.potential if tensor.shape == shape else None
                    if origin.unit_dim != 1 and tensor.ndim >= 3:
                        derived.unit_dim = -1
                    if func in SUMMING:
                        derived.sums = origin.values
        return result

    def weigh(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, bool]:
        """Calls a function that maps by weights that it is given.

        Returns:
            Its result, and whether a weight of the network is among its positional arguments.
        """
        result = func(*args, **kwargs)
        weight: str | None = None
        is_made, has_weights, is_weighed, dims, weighings = False, False, False, 0, 0
        first: Origin | None = None
        is_normalisation = _is_normalisation(func)
        origins = self._origins
        for position, value in enumerate((*args, *kwargs.values()) if kwargs else args):
            if not isinstance(value, Tensor):
                continue
            origin = origins.find(value)
            # A parameter is looked up without a note of its own.
            is_weight, name = origins.weight(value) if origin is None else (origin.is_weight, origin.weight)
            if is_weight:
                is_made = is_weighed = True
                if type(value) is not nn.Parameter and self.split_weight is None and _is_split(value):
                    self.split_weight = name or "of another module"
                if name is not None:
                    has_weights = has_weights or position < len(args)
                    ndim = value.ndim
                    # Of a bias, the name says nothing.
                    is_vector = ndim < 2 and func not in WITHOUT_BIAS
                    is_bias = is_vector or (position == 0 and func in ADDING_TO_FIRST)
                    if ndim > dims and (is_normalisation or not is_bias):
                        weight, dims = name, ndim
            elif origin is not None and origin.is_made:
                is_made, weighings = True, max(weighings, origin.weighings)
                if position == 0:
                    first = origin
                if origin.softmax is not None:
                    self._note_weights(origin.softmax)
        if not is_made and func not in FEATURES_LAST:
            return result, has_weights
        for tensor in (result,) if isinstance(result, Tensor) else tensors_in(result):
            if tensor.dtype.is_floating_point:
                origin = self._origins.renew(tensor)
                origin.is_made = is_made
                self._origins.note_weighings(origin, weighings + is_weighed)
                if weight is not None:
                    origin.source = Source(_named_after(weight))
                elif first is not None and is_normalisation:
                    origin.source = first.source
                if func in FEATURES_LAST:
                    origin.unit_dim = -1
        return result, has_weights

    def _note_weights(self, softmax: Softmax) -> None:
        """Notes that a network weighs other tensors by the result of a softmax."""
        softmax.weighs = softmax.weighs or self._origins.in_call

    def _attend(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        self.note_other((args, kwargs), result, names_weights=False)
        for tensor in tensors_in(result):
            self._origins.of(tensor).unit_dim = -1
        return result

    def _join(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        self.note_other((args, kwargs), result, names_weights=False)
        given = list(tensors_in((args, kwargs)))
        made = [origin for tensor in given if (origin := self._origins.find(tensor)) is not None]
        origin = self._origins.whole_of_all(made)
        if origin is not None:
            self._origins.of(result).whole = origin
            whole = origin.reference()
            if whole is not None:
                self._origins.hold_base(result, whole)
        elif not self._origins.in_call and _is_of_one_layer(made):
            self._origins.note_passes(result, given)
        return result

    def _broadcast(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        results = func(*args, **kwargs)
        given = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
        for tensor, result in zip(given, results, strict=True):
            self._derive((tensor,), result, has_same_values=tensor.shape == result.shape)
        return results

    def _ignore(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    def note_other(self, args: tuple[Any, ...], result: Any, names_weights: bool = True) -> None:
        """Notes what follows for the result of any other function.

        Args:
            args: its arguments.
            result: what it gave.
            names_weights: whether the result is known by a weight among the arguments.
        """
        made, are_weights, dims, weight, weighings = False, True, set(), None, 0
        for tensor in tensors_in(args):
            origin = self._origins.known(tensor)
            are_weights = are_weights and origin is not None and origin.is_weight
            if origin is not None:
                made = made or origin.is_made or origin.is_weight
                weighings = max(weighings, origin.weighings)
                if origin.unit_dim != 1:
                    dims.add(tensor.ndim)
                if origin.weight is not None and tensor.ndim > 1:
                    weight = weight or origin.weight
        if not made and not dims:
            return
        for tensor in (result,) if isinstance(result, Tensor) else tensors_in(result):
            if made and are_weights:
                self._origins.note_weight(tensor)
            elif tensor.dtype.is_floating_point and not (args and tensor is args[0]):
                origin = self._origins.renew(tensor)
                origin.is_made = made
                self._origins.note_weighings(origin, weighings + (weight is not None))
                if weight is not None and names_weights:
                    origin.source = Source(_named_after(weight))
                if self._tracks_units and tensor.ndim >= 3 and tensor.ndim in dims:
                    origin.unit_dim = -1

    def _first(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Origin | None:
        tensor = args[0] if args else kwargs.get("input")
        return self._origins.known(tensor) if isinstance(tensor, Tensor) else None


def _is_of_one_layer(joined: Sequence[Origin]) -> bool:
    """Whether all that weights made among tensors that are joined is of the same neurons."""
    paths = {None if origin.is_weight else origin.path for origin in joined if origin.is_made or origin.is_weight}
    return len(paths) == 1 and None not in paths


def _named_after(weight: str) -> str:
    """The name of the layer that a weight makes."""
    return "" if weight == "weight" else weight.removesuffix(".weight")


def _is_split(tensor: Tensor) -> bool:
    """Whether this process computes with a part of a tensor, a `DTensor`, of which other processes have the rest."""
    placements: Any = getattr(tensor, "placements", ())
    return any(not placement.is_replicate() for placement in placements)


@cache
def _is_dropout(func: TorchFunction) -> bool:
    return "dropout" in getattr(func, "__name__", "")


@cache
def _is_normalisation(func: TorchFunction) -> bool:
    return "norm" in getattr(func, "__name__", "")


def _unit_dim_of_view(source: Tensor, view: Tensor, unit_dim: int, has_same_values: bool) -> int:
    """The dimension of a view that steps through memory as the units of its source do; 1 where there is none."""
    if source.ndim < 2 or source.shape == view.shape:
        return unit_dim
    size, step = source.shape[unit_dim], source.stride(unit_dim)
    found = [
        dim for dim in range(view.ndim) if view.stride(dim) == step and (view.shape[dim] == size or not has_same_values)
    ]
    return found[-1] if len(found) == 1 else 1
