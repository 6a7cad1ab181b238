"""Functions value by value: sums, products and others, of which activations are made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_psp.capture.functions import (
    ACTIVATING,
    BOUNDS,
    COMPARISONS,
    DIFFERENCES,
    EXPONENTIALS,
    MAXIMA,
    SUMS,
    Role,
    TorchFunction,
    is_masking,
)
from lightning_psp.capture.origin import (
    ACTIVATED,
    ACTIVATING_STEP,
    GATED,
    LINEAR,
    POLYNOMIAL,
    WEIGHED,
    Origin,
    Softmax,
)
from lightning_psp.capture.origins import Origins

Note = Callable[[Tensor], None]

# No nonlinearity of neurons bends there: a number up to this one guards a root, a logarithm or a quotient.
_NEXT_TO_ZERO = 1e-2


class Join(NamedTuple):
    """A tensor at which the ways of several others part that come together again in an activation.

    Args:
        origin: the tensor.
        between: what was computed of it on the way.
    """

    origin: Origin
    between: list[Origin]


class Pointwise:
    """Follows functions value by value.

    Args:
        origins: keeps what is known of tensors.
        tracks_units: whether the dimension of the neurons is followed through sums and products.
    """

    def __init__(self, origins: Origins, tracks_units: bool) -> None:
        self._origins = origins
        self._tracks_units = tracks_units

    def compute(
        self, func: TorchFunction, role: Role, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Join | None, Note]:
        """What a function value by value makes of what is known of its arguments.

        Returns:
            The tensor at which the arguments' ways part, if the result closes an activation that is written out; and a
            function that notes what follows for the result.
        """
        made, number_of_data, has_weights = self._sort(args if not kwargs else (*args, *kwargs.values()))
        if func in MAXIMA and made and number_of_data + len(made) > 1:
            join, note = self._follow(func, role, args, kwargs, made, number_of_data, has_weights)
            return join, lambda result: self._note_largest(note, result)
        if func in DIFFERENCES and len(made) > 1 and made[1].is_largest:
            # Perhaps exponents below the largest one, as a softmax has them: no activation by itself.
            _, note = self._follow(func, role, args, kwargs, made, number_of_data, has_weights)
            return None, lambda result: self._note_below_largest(note, result)
        if func in EXPONENTIALS and made and made[0].is_below_largest:
            return None, self._note_made
        return self._follow(func, role, args, kwargs, made, number_of_data, has_weights)

    def _follow(
        self,
        func: TorchFunction,
        role: Role,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        made: list[Origin],
        number_of_data: int,
        has_weights: bool,
    ) -> tuple[Join | None, Note]:
        if not made:
            if not has_weights:
                return None, _note_nothing
            # A function of weights alone is a weight, too; one of single numbers that weights made is such a number.
            has_numbers = any(isinstance(value, Tensor) and self._is_number(value) for value in args)
            return None, (self._note_made if number_of_data or has_numbers else self._origins.note_weight)
        guarded = _guarded_by_mask(func, args, kwargs, made)
        if guarded is not None:
            return None, lambda result: self._note_function(result, guarded, POLYNOMIAL, False, True)
        is_arithmetic = role is Role.ARITHMETIC
        is_choice_of_data = is_masking(func, args) and not any(map(_is_condition, made))
        is_mask = is_choice_of_data and len(made) == 1
        # What data choose from several tensors is the sum of these, each times its mask.
        is_sum = func in SUMS or (is_choice_of_data and not is_mask)
        is_guard = _is_guard(func, args, kwargs)
        is_activating = func in ACTIVATING and not is_guard
        step = LINEAR if is_arithmetic or is_choice_of_data else ACTIVATING_STEP if is_activating else POLYNOMIAL
        if len(made) == 1 and not (is_sum and number_of_data):
            origin = made[0]
            if is_arithmetic and _is_quotient(func) and not _is_first(origin, args):
                step = POLYNOMIAL
            is_multiple = is_mask or (step == LINEAR and not has_weights)
            keeps_potential = step == LINEAR or func in BOUNDS
            threshold = _threshold(func, args)
            keeps_from_zero = is_guard and any(map(_is_next_to_zero, _numbers(args, kwargs)))
            is_biased = is_sum and has_weights

            def note_function(result: Tensor) -> None:
                self._note_function(result, origin, step, is_multiple, keeps_potential)
                if keeps_from_zero or threshold is not None or is_biased:
                    derived = self._origins.of(result)
                    derived.is_biased = is_biased
                    derived.is_guarded, derived.threshold = derived.is_guarded or keeps_from_zero, threshold

            return None, note_function
        meeting, way, between = (None, LINEAR, []) if is_sum and number_of_data else _meet(made)
        way = max(way, step, LINEAR if is_sum else POLYNOMIAL)
        made_of = _made_of(made, is_sum)
        source = None if meeting is None else meeting.source
        is_bent = not is_sum or any(origin.is_bent for origin in made)
        unit_dim = next((origin.unit_dim for origin in made if origin.unit_dim != 1), 1)

        def note(result: Tensor) -> None:
            origin = self._origins.renew(result)
            origin.is_made, origin.made_of, origin.is_bent = True, made_of, is_bent
            origin.weighings = max(before.weighings for before in made)
            if self._tracks_units and unit_dim != 1 and result.ndim >= 3:
                origin.unit_dim = -1
            if meeting is not None:
                self._origins.follow(origin, meeting, way)
                if is_bent:
                    self._origins.hold_root(result, meeting)
            if way < ACTIVATING_STEP:
                origin.source = source
            if len(made) == 2 and is_sum and made[1].normalises is made[0].values:
                origin.softmax = Softmax(made[0].reference())  # one that is written out
            if len(made) == 2 and _is_quotient(func) and made[1].sums is made[0].values:
                # Probabilities that are made to sum to 1 once more.
                origin.softmax, origin.potential, origin.whole = made[0].softmax, made[0].potential, made[0]

        is_join = meeting is not None and way == ACTIVATING_STEP
        return (Join(meeting, between) if is_join else None), note  # type: ignore[arg-type]

    def _note_largest(self, note: Note, result: Tensor) -> None:
        note(result)
        self._origins.of(result).is_largest = True

    def _note_below_largest(self, note: Note, result: Tensor) -> None:
        note(result)
        self._origins.of(result).is_below_largest = True

    def _note_made(self, result: Tensor) -> None:
        self._origins.renew(result).is_made = True

    def _is_number(self, value: Tensor) -> bool:
        origin = self._origins.find(value)
        return origin is not None and origin.is_made and not origin.is_weight

    def _sort(self, values: Iterable[Any]) -> tuple[list[Origin], int, bool]:
        """The tensors that weights made, the number of those that are data, and whether weights are among them."""
        made, number_of_data, has_weights = [], 0, False
        for value in values:
            if isinstance(value, Tensor):
                origin = self._origins.known(value)
                if origin is not None and (origin.is_weight or (origin.is_made and value.ndim == 0)):
                    has_weights = True
                elif value.ndim > 0:
                    if origin is not None and origin.is_made:
                        made.append(origin)
                    else:
                        number_of_data += 1
        return made, number_of_data, has_weights

    def _note_function(
        self, result: Tensor, origin: Origin, step: int, is_multiple: bool, keeps_potential: bool
    ) -> None:
        tensor = origin.reference()
        derived = self._origins.renew(result)
        self._origins.share(derived, origin)
        derived.is_bent = origin.is_bent or step != LINEAR
        derived.is_guarded = origin.is_guarded
        if origin.made_of != WEIGHED:
            derived.source = None  # a multiple of what nonlinearities gave is no output of a module
        if keeps_potential:
            derived.potential = origin.potential
        if step == LINEAR:
            derived.is_pooled = origin.is_pooled
        if is_multiple:
            derived.softmax = origin.softmax
        if derived.is_bent:
            self._origins.hold_root(result, origin)
        if origin.unit_dim < result.ndim:
            derived.unit_dim = origin.unit_dim
        if tensor is None or tensor.shape == result.shape:
            self._origins.follow(derived, origin, step)
        if is_multiple:
            derived.whole = origin
            if tensor is not None:
                self._origins.hold(tensor, origin)

    def gives_multiple(
        self, func: TorchFunction, role: Role | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bool:
        """Whether a call gives a multiple of the one tensor among its arguments that weights made."""
        if role is not Role.ARITHMETIC:
            return False
        made, number_of_data, has_weights = self._sort(args if not kwargs else (*args, *kwargs.values()))
        return len(made) == 1 and not has_weights and not (func in SUMS and number_of_data)

    def whole_of_placed(
        self, func: TorchFunction, role: Role | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Origin | None:
        """The tensor that a call overwrites with functions of its own values, or a tensor of which all are parts."""
        if func is not Tensor.__setitem__ and role is not Role.JOINING:
            return None
        return self._origins.whole_of_placed(self._sort(args if not kwargs else (*args, *kwargs.values()))[0])

    def overwrite(
        self, role: Role | None, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Join | None, Note]:
        """As :meth:`compute`, for a function that overwrites its first argument."""
        if role in (Role.ARITHMETIC, Role.POINTWISE):
            return self.compute(func, role, args, kwargs)
        if func is Tensor.__setitem__ and is_masking(func, args):
            moved = self._moved_by_mask(args)
            if moved is not None:
                return None, lambda result: self._note_function(result, moved, POLYNOMIAL, False, True)
            is_number = len(args) > 2 and isinstance(args[2], (int, float))
            return self.compute(func, Role.POINTWISE, args if is_number else args[:2], kwargs)
        tensor = args[0] if args else kwargs.get("input")
        origin = self._origins.find(tensor)
        made, _, has_weights = self._sort(args if not kwargs else (*args, *kwargs.values()))
        is_made, weighings = bool(made) or has_weights, max((before.weighings for before in made), default=0)
        whole = self.whole_of_placed(func, role, args, kwargs)

        def note(result: Tensor) -> None:
            derived = self._origins.renew(result)
            derived.whole = whole
            if role is Role.HANDING and origin is not None:
                self._origins.share(derived, origin)
            derived.is_made, derived.weighings = is_made, weighings
            derived.unit_dim = 1 if origin is None else origin.unit_dim

        return None, note

    def _moved_by_mask(self, args: tuple[Any, ...]) -> Origin | None:
        """The tensor that a mask of its own moves away from 0: ``z[z < 1e-8] += 1e-8``, a bound, too."""
        tensor, mask, value = (self._origins.find(argument) for argument in args)
        if tensor is None or mask is None or mask.parent is not tensor or not _is_next_to_zero(mask.threshold):
            return None
        while value is not None and value is not tensor:
            value = value.whole
        return value


def _note_nothing(result: Tensor) -> None:
    """Nothing is known."""


def _is_first(origin: Origin, args: tuple[Any, ...]) -> bool:
    return bool(args) and origin.reference() is args[0]


def _is_condition(origin: Origin) -> bool:
    tensor = origin.reference()
    return tensor is not None and tensor.dtype is torch.bool


def _is_guard(func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call bounds values on one side by a number other than 0, as for a logarithm or a quotient."""
    bounds = [bound for bound in (*args[1:], *kwargs.values()) if bound is not None]
    return func in BOUNDS and len(bounds) == 1 and isinstance(bounds[0], (int, float)) and bounds[0] != 0


def _is_next_to_zero(bound: float | None) -> bool:
    return bound is not None and 0 < abs(bound) <= _NEXT_TO_ZERO


def _numbers(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[float]:
    """The numbers among the arguments of a call."""
    return [value for value in (*args, *kwargs.values()) if isinstance(value, (int, float))]


def _threshold(func: TorchFunction, args: tuple[Any, ...]) -> float | None:
    """The number with which a call compares values."""
    is_known = func in COMPARISONS and len(args) > 1 and isinstance(args[1], (int, float))
    return float(args[1]) if is_known else None


def _guarded_by_mask(
    func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any], made: list[Origin]
) -> Origin | None:
    """The tensor that a mask of its own keeps away from 0: ``z[z < 1e-8] = 1e-8``, a bound that is written out.

    What a bound has guarded, as in ``z.clamp(min=1e-5).masked_fill(z <= 1e-5, 0)``, may have 0 there, too.
    """
    if len(made) != 2 or not is_masking(func, args):
        return None
    tensor, mask = made if made[0].threshold is None else reversed(made)
    numbers = _numbers(args, kwargs)
    threshold = mask.threshold
    if mask.parent is not tensor or len(numbers) != 1 or not _is_next_to_zero(threshold):
        return None
    return tensor if numbers[0] == threshold or (numbers[0] == 0 and tensor.is_guarded) else None


@cache
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
