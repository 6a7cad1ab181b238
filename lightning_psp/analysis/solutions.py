"""Two solutions of a network, and the weights in the plane through them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from lightning_psp.analysis.directions import filter_direction, orthogonal_direction
from lightning_psp.analysis.unchanged import each_entry_once, refuse_lazy, refuse_shared_memory
from lightning_psp.pruning.bound_masks import Masks, bind_masks

Direction: TypeAlias = Literal["orthogonal", "filter"]

_DIRECTIONS = {"orthogonal": orthogonal_direction, "filter": filter_direction}


@dataclass(frozen=True, eq=False)
class Ends:
    """A tensor of a network, and its values in the two solutions, on its device and of its type.

    Args:
        names: all names that the network knows it by.
        tensor: the tensor.
        first: its values in the first solution.
        second: its values in the second one.
    """

    names: tuple[str, ...]
    tensor: Tensor
    first: Tensor
    second: Tensor

    @property
    def is_continuous(self) -> bool:
        """Whether there are values between two others: not in a tensor of integers."""
        return self.tensor.is_floating_point() or self.tensor.is_complex()

    @property
    def is_weight(self) -> bool:
        """Whether it is a parameter that can be moved."""
        return isinstance(self.tensor, nn.Parameter) and self.is_continuous


class WeightPlane:
    """Puts the weights ``first + x · (second - first) + y · direction`` into a network.

    At x = 0, y = 0 they are the first solution to the digit, and at x = 1, y = 0 the second. Buffers have no part in
    the direction: those of floating point are interpolated where x is between 0 and 1 and are those of the nearer
    solution elsewhere, so that a running variance is never negative; integers, and what is infinite in a solution, are
    those of the nearer one.

    Args:
        ends: the network's tensors.
        direction: the second direction, a tensor for each weight among them; None for a line.
    """

    def __init__(self, ends: Sequence[Ends], direction: Sequence[Tensor] | None) -> None:
        self.ends = ends
        weights = [each for each in ends if each.is_weight]
        self._direction = [] if direction is None else list(zip(weights, direction, strict=True))

    def put(self, x: float, y: float) -> None:
        """Puts the weights of a point into the network, past all graphs that hold them."""
        with torch.inference_mode():  # where tensors that were made in that mode can be written, too
            for each in self.ends:
                value, first, second = (
                    each_entry_once(tensor, each.tensor) for tensor in (each.tensor.data, each.first, each.second)
                )
                nearer = first if x < 0.5 else second
                if not each.is_continuous:
                    value.copy_(nearer)
                    continue
                value, first, second, nearer = map(_real, (value, first, second, nearer))
                # exact at 0 and at 1
                torch.lerp(first, second, x if each.is_weight else min(max(x, 0.0), 1.0), out=value)
                if not each.is_weight:  # a mask may be infinite
                    value.copy_(torch.where((second - first).isfinite(), value, nearer))
            if y != 0:
                for weight, direction in self._direction:
                    _real(weight.tensor.data).add_(direction, alpha=y)
        torch.clear_autocast_cache()  # which may hold the weights of the last point in another precision


def weight_plane(
    module: nn.Module,
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    masks: Masks | None,
    direction: Direction,
    seed: int,
    is_line: bool,
) -> WeightPlane:
    """The plane through two solutions of a network; see :func:`~lightning_psp.analysis.loss_plane`."""
    ends = _ends(module, first, second)
    weights = [each for each in ends if each.is_weight]
    refuse_shared_memory((each.names[0], each.tensor) for each in weights)
    if all(torch.equal(each.first, each.second) for each in weights):
        raise ValueError("Expected arguments `first` and `second` to be different solutions but got the same weights.")
    for each in weights:
        for argument, value in (("first", each.first), ("second", each.second)):
            if not value.isfinite().all():
                raise ValueError(f"Expected argument `{argument}` to hold numbers but {each.names[0]!r} is not finite.")
    kept = _kept(weights, module, masks)
    if is_line:
        return WeightPlane(ends, None)
    starts, stops = ([_as_rows(getattr(each, end)).cpu() for each in weights] for end in ("first", "second"))
    rows = _DIRECTIONS[direction](starts, stops, kept, seed)
    shaped = [found.view_as(_real(each.tensor)) for found, each in zip(rows, weights, strict=True)]
    return WeightPlane(ends, [found.to(_real(each.tensor)) for found, each in zip(shaped, weights, strict=True)])


def _real(tensor: Tensor) -> Tensor:
    """A view in which a complex number is two real ones."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _as_rows(tensor: Tensor) -> Tensor:
    """The real numbers of a tensor in as many dimensions as it has: twice as many in the last if it is complex."""
    return _flat_pairs(torch.view_as_real(tensor)) if tensor.is_complex() else tensor


def _flat_pairs(pairs: Tensor) -> Tensor:
    return pairs.reshape(*pairs.shape[:-2], -1)


def _ends(module: nn.Module, first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Ends]:
    """The parameters and persistent buffers of a network, each once, with their values in the solutions."""
    known = module.state_dict(keep_vars=True)
    own = [*module.parameters(), *module.buffers()]
    # By the tensors, for a module may have other names for them in its state dict.
    names: dict[int, list[str]] = {id(tensor): [] for tensor in own}
    for name, tensor in known.items():
        if id(tensor) in names:
            names[id(tensor)].append(name)
        elif isinstance(tensor, Tensor) and not name.endswith("_extra_state"):
            raise ValueError(
                f"Expected argument `module` to have a parameter or buffer for {name!r} of its state dict, but a hook"
                " or a method of its own makes it: the plane could not move it. Use the module without them."
            )
    states = {"first": first, "second": second}
    for argument, state in states.items():
        _check_names(argument, state, known)
    return [
        Ends(tuple(found), tensor, *(_value(argument, state, found, tensor) for argument, state in states.items()))
        for tensor in own
        if (found := names[id(tensor)])
    ]


def _check_names(argument: str, state: Any, known: Mapping[str, Any]) -> None:
    if not isinstance(state, Mapping):
        hint = f" Give its `{argument}.state_dict()`." if isinstance(state, nn.Module) else ""
        hint = " Give what `torch.load` reads from it." if isinstance(state, (str, os.PathLike)) else hint
        raise TypeError(f"Expected argument `{argument}` to be a state dict but got {type(state).__name__}.{hint}")
    unknown = [name for name in state if name not in known]
    if unknown:
        hint = f" Of a checkpoint, use `{argument}=checkpoint['state_dict']`." if "state_dict" in unknown else ""
        if str(unknown[0]).partition(".")[2] in known:
            hint = " It is one of a module around `module`: give that, or the `state_dict()` of `module` itself."
        raise ValueError(
            f"Expected argument `{argument}` to be a state dict of `module` but got names that it has not:"
            f" {', '.join(map(str, unknown))}.{hint}"
        )


def _value(argument: str, state: Mapping[str, Any], names: Sequence[str], tensor: Tensor) -> Tensor:
    """The values of a tensor in one solution."""
    refuse_lazy(names[0], tensor)
    found = [state[name] for name in names if name in state]
    if not found:
        raise ValueError(f"Expected argument `{argument}` to hold {names[0]!r} but got none.")
    for value in found:
        if not isinstance(value, Tensor) or value.shape != tensor.shape:
            shape = [*value.shape] if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"Expected argument `{argument}` to hold {names[0]!r} of shape {[*tensor.shape]} but got {shape}."
            )
    if any(not torch.equal(value, found[0]) for value in found[1:]):
        raise ValueError(
            f"Expected argument `{argument}` to hold one value of what is one tensor in `module` but got different ones"
            f" of {' and '.join(map(repr, names))}."
        )
    copied: Tensor = found[0].detach().to(tensor.device, tensor.dtype, copy=True)
    once = each_entry_once(copied, tensor)
    if once is not copied and not torch.equal(once.expand_as(copied), copied):
        raise ValueError(
            f"Expected argument `{argument}` to hold one value of what is the same memory in `module` but got different"
            f" ones in {names[0]!r}."
        )
    return copied


def _kept(weights: Sequence[Ends], module: nn.Module, masks: Masks | None) -> list[Tensor | None]:
    """For each weight where it may be moved; None for everywhere."""
    bound = {} if masks is None else {id(each.weight.parameter): ~each.goes.cpu() for each in bind_masks(module, masks)}
    kept = [bound.get(id(each.tensor)) for each in weights]
    return [
        _flat_pairs(torch.stack([keep, keep], dim=-1)) if keep is not None and each.tensor.is_complex() else keep
        for keep, each in zip(kept, weights, strict=True)
    ]
