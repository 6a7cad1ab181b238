"""Keeping what is known of the tensors of one forward pass."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

from lightning_psp.capture.origin import ACTIVATED, ACTIVATING_STEP, Origin, Potential, Source, is_within, tensors_in
from lightning_psp.torch_private.tensors import is_held_elsewhere, is_memory_held_elsewhere, swap


class Origins:
    """What is known of each tensor of a forward pass, as long as it is there.

    Args:
        name_of_parameter: gives the name of a parameter of the network, or None.
        takes_foreign: whether parameters that are none of the network's count as weights, too.
    """

    def __init__(self, name_of_parameter: Callable[[Tensor], str | None], takes_foreign: bool) -> None:
        self._takes_foreign = takes_foreign
        self.in_call = False  # whether the network is running, whose tensors are many and large
        self._name_of_parameter = name_of_parameter
        self._origins: dict[int, Origin] = {}
        self.number = 0  # of tensors of which anything was noted
        self.most_weighings = 0  # that have come one after another before any tensor
        self._bases: dict[int, Any] = {}  # what a tensor that is still there is a view of, or joined of
        # Of which the last copies and multiples were taken: of layers, or outside the network, and of other tensors.
        self._held: deque[Tensor] = deque(maxlen=4)
        self._held_inside: deque[Tensor] = deque(maxlen=2)

        def forget(key: int, reference: weakref.ref[Tensor]) -> None:
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
        key = id(tensor)
        before = self._origins.get(key)
        if before is not None and before.reference() is tensor:
            before.reference = _gone
            self._bases.pop(key, None)
        origin = self._origins[key] = Origin(weakref.ref(tensor, partial(self._forget, key)))
        self.number += 1
        origin.serial = self.number
        if type(tensor) is not Tensor:
            origin.is_weight, origin.weight = self.weight(tensor)
        return origin

    def weight(self, tensor: Tensor) -> tuple[bool, str | None]:
        """Whether a tensor is a parameter that counts as a weight, and its name if it is one of the network's."""
        # Parameters are of a class of their own, and asking of other tensors whether they are some takes long.
        if type(tensor) is Tensor or not isinstance(tensor, nn.Parameter):
            return False, None
        name = self._name_of_parameter(tensor)
        return name is not None or self._takes_foreign, name

    def known(self, tensor: Any) -> Origin | None:
        """The origin of a tensor of which anything is known, or that is a weight; None for anything else."""
        origin = self._origins.get(id(tensor))
        if origin is not None and origin.reference() is tensor:
            return origin
        return self.renew(tensor) if type(tensor) is not Tensor and isinstance(tensor, nn.Parameter) else None

    def record_result(self, result: Tensor, z: Origin, potential: Potential[Any] | None) -> None:
        """Notes that `result` is what a nonlinearity made of the tensor `z`, which is a potential or none."""
        origin = self.renew(result)
        origin.potential = potential
        origin.is_made = z.is_made or potential is not None
        origin.made_of, origin.weighings = ACTIVATED, z.weighings
        if shape_of(z) in (None, result.shape):
            self.follow(origin, z, ACTIVATING_STEP)
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
            and not is_memory_held_elsewhere(tensor)
            and unpack_dual(tensor).tangent is None  # what forward-mode derivatives hold cannot change places
        )

    def exchange(self, tensor: Tensor, other: Tensor) -> None:
        """Makes a tensor that can be replaced and a new one change places; what is known of the former goes along."""
        origin = self.of(tensor)
        del self._origins[id(tensor)]
        del origin.reference  # tensors with weak references cannot change places
        swap(tensor, other, are_plain=True)
        origin.reference = weakref.ref(other, partial(self._forget, id(other)))
        self._origins[id(other)] = origin

    def copy(self, tensor: Tensor, other: Tensor) -> None:
        """Notes that `other` is a copy of a tensor, which takes its place."""
        origin = self.of(tensor)
        copied = self.renew(other)
        self.share(copied, origin)
        copied.unit_dim, copied.whole = origin.unit_dim, origin.whole
        copied.parent, copied.step, copied.depth = origin.parent, origin.step, origin.depth

    def record_affine(self, path: str, unit_dim: int, argument: Any, result: Tensor) -> None:
        """Notes that the module at `path` made `result` of a tensor by its weights."""
        known = self.find(argument)
        origin = self.renew(result)
        origin.is_made, origin.unit_dim, origin.source = True, unit_dim, Source(path)
        self.note_weighings(origin, 1 + known.weighings if known is not None and known.is_made else 1)

    def note_weighings(self, origin: Origin, number: int) -> None:
        """Notes how many weights have come one after another where a tensor arises."""
        origin.weighings = number
        if number > self.most_weighings:
            self.most_weighings = number

    def record_module(
        self, path: str, call: object, tensors: Iterable[Tensor], *, given: tuple[Any, ...], since: int
    ) -> None:
        """Notes that the module at `path`, which has weights, returned tensors in one call.

        Args:
            path: the module's path.
            call: the same object for all of them.
            tensors: what it returned.
            given: what it was called with.
            since: number of tensors before the call of which anything was noted.
        """
        for tensor in tensors:
            known = self.find(tensor)
            if known.serial <= since if known is not None else any(tensor is it for it in tensors_in(given)):
                continue  # handed on as it was
            origin = known or self.of(tensor)
            origin.is_made = True
            source = origin.source
            # Else a module or a parameter inside this one made it.
            if source is None or source.path is None or not is_within(source.path, path):
                origin.source = Source(path, call if source is None or source.path != path else source.evaluation)
                origin.source.is_around = source is None or source.path is None
                if source is not None and source.path is None:
                    origin.source.place = source.place

    def end_call(self) -> None:
        """The network has returned, and what it returned is known: tensors that were kept for that are let go of."""
        self._held_inside.clear()

    def clear(self) -> None:
        """Forgets every tensor."""
        self.most_weighings = 0
        self._origins.clear()
        self._bases.clear()
        self._held.clear()
        self._held_inside.clear()

    # --- the whole of which a tensor is a part ---------------------------------------------------------------------

    def whole_of(self, tensor: Tensor) -> Tensor:
        """The tensor of which this one is a view, a part or a multiple, as far as it is still there."""
        origin = self.find(tensor)
        whole = None if origin is None else self.whole(origin)
        return tensor if whole is None else whole

    @staticmethod
    def root(origin: Origin) -> Origin:
        """What a tensor is a nonlinear function of, value by value, as far as no potential lies on the way."""
        while origin.is_bent and not origin.values.potentials and origin.potential is None:
            # The whole where it is a view with another shape, but for probabilities.
            before = origin.parent or (origin.whole if origin.entering is None else None)
            if before is None:
                break
            origin = before
        return origin

    @staticmethod
    def top(origin: Origin) -> Origin:
        """The tensor of which this one is a view, a part or a multiple, as far as it or its potentials are there."""
        found = origin
        while origin.whole is not None:
            origin = origin.whole
            if origin.reference() is not None or origin.values.potentials:
                found = origin
        return found

    @staticmethod
    def stands_for(origin: Origin) -> Origin:
        """The tensor of which this one is a view, a part, a multiple or a nonlinear function, value by value."""
        return deque(Origins._ways_back(origin), maxlen=1)[0]

    @staticmethod
    def _ways_back(origin: Origin) -> Iterator[Origin]:
        before: Origin | None = origin
        while before is not None:
            yield before
            origin = before
            before = origin.potential.origin if origin.potential is not None else None
            before = before or origin.whole or (origin.parent if origin.is_bent else None)
            before = None if before is origin else before

    @staticmethod
    def whole_of_all(made: Iterable[Origin]) -> Origin | None:
        """The tensor of which several are parts, or what nonlinearities made of parts; together they stand for it."""
        wholes = [Origins.stands_for(origin) for origin in made if origin.is_made]
        return wholes[0] if len(wholes) > 1 and all(whole is wholes[0] for whole in wholes) else None

    @staticmethod
    def whole_of_placed(made: Sequence[Origin]) -> Origin | None:
        """The same where others are put in the place of parts of the first, which they may be made of."""
        is_own = all(any(before is made[0] for before in Origins._ways_back(other)) for other in made[1:])
        return made[0] if len(made) > 1 and is_own else Origins.whole_of_all(made)

    @staticmethod
    def line(origin: Origin) -> Iterator[Origin]:
        """A tensor, and what it is a view, a part, a multiple or another function of, value by value, one by one."""
        before: Origin | None = origin
        while before is not None:
            yield before
            before = before.whole if before.parent is None else before.parent

    @staticmethod
    def whole(origin: Origin) -> Tensor | None:
        """The same of a tensor that may be gone itself."""
        found = origin.reference()
        while origin.whole is not None:
            origin = origin.whole
            found = origin.reference() if origin.reference() is not None else found
        return found

    def with_values_of(self, tensor: Tensor) -> Iterator[Tensor]:
        """Those that are still there of the tensors of which this one holds the values under another shape or type."""
        origin = self.find(tensor)
        whole = None if origin is None else origin.whole
        while origin is not None and whole is not None and whole.values is origin.values:
            other = whole.reference()
            if other is not None:
                yield other
            whole = whole.whole

    def argument(self, args: tuple[Any, ...]) -> Origin | None:
        """What is known of the first tensor among arguments, where weights made it and it is none, returned, itself."""
        for value in args:
            if isinstance(value, Tensor):
                origin = self.find(value)
                return origin if origin is not None and origin.is_made and not origin.is_weight else None
        return None

    def note_weight(self, result: Tensor) -> None:
        """Notes that a tensor was computed of weights alone."""
        self.renew(result).is_weight = True

    @staticmethod
    def share(derived: Origin, origin: Origin) -> None:
        """Notes that a tensor holds potentials of the same neurons as another one."""
        if origin.source is None and origin.is_made:
            origin.source = Source(None)
        derived.source = origin.source
        derived.is_made, derived.made_of, derived.is_bent = origin.is_made, origin.made_of, origin.is_bent
        derived.is_weight, derived.weight = origin.is_weight, origin.weight
        derived.weighings = origin.weighings

    @staticmethod
    def follow(origin: Origin, parent: Origin, step: int) -> None:
        """Notes that a tensor is a function of another one, value by value."""
        origin.parent, origin.step, origin.depth = parent, step, parent.depth + 1

    def hold_base(self, view: Tensor, base: Tensor) -> None:
        """Keeps a tensor as long as a view or a part of it is there."""
        self._bases[id(view)] = base

    def note_passes(self, joined: Tensor, tensors: Iterable[Tensor]) -> None:
        """Notes that a tensor is the concatenation of passes of one layer, with constants beside them."""
        passes = [tensor for tensor in tensors if (origin := self.find(tensor)) is not None and origin.is_made]
        self.of(joined).passes = [self.of(tensor) for tensor in passes]
        self._bases[id(joined)] = passes

    def hold_root(self, result: Tensor, origin: Origin) -> None:
        """Keeps what a tensor is a nonlinear function of, which may be the output layer's, as long as that is there."""
        tensor = origin.reference()
        if tensor is not None and origin.is_made:
            self._bases[id(result)] = self._bases.get(id(tensor), tensor) if origin.is_bent else tensor

    def hold(self, tensor: Tensor, origin: Origin) -> None:
        """Keeps a tensor for a while that may turn out to be the output layer's, of which a copy goes on."""
        if origin.is_made:
            (self._held if origin.path is not None or not self.in_call else self._held_inside).append(tensor)


def _gone() -> None:
    """In place of a reference to a tensor that was overwritten."""


def shape_of(origin: Origin) -> tuple[int, ...] | None:
    """The shape of a tensor, if it is still there."""
    tensor = origin.reference()
    return None if tensor is None else tensor.shape
