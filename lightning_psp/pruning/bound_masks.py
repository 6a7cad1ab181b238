"""Masks together with the parameters that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_psp.pruning.prunable import Weight, norm_like, refuse, weights_by_name
from lightning_psp.torch_private.tensors import version_of

Masks = Mapping[str, Tensor]

# An integer type of the same width, by number of bytes.
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(eq=False)
class BoundMask:
    """A mask together with the parameter that it belongs to.

    Args:
        weight: the parameter.
        bits: int8, on the parameter's device: -1, all bits set, where a weight stays, and 0 where it goes. To clear the
            weight's own bits takes less than a third of the time of `masked_fill_` on a CPU; NaN becomes 0, too.
        is_open: whether it lets all weights stay, and there is nothing to do.
    """

    weight: Weight
    bits: Tensor
    is_open: bool
    _version: int | None = field(default=None, init=False)  # of the parameter, when the weights were set to 0

    @property
    def goes(self) -> Tensor:
        """True where a weight is to be 0."""
        return self.bits == 0

    def apply(self) -> None:
        """Sets the weights to 0."""
        if not self.is_open:
            _set_to_zero(self.weight.parameter, self.weight.scale, self.bits)
            self._version = version_of(self.weight.parameter)

    def apply_again(self) -> None:
        """Sets the weights to 0, unless torch has counted no change since that was done, which takes no time then."""
        if not self.is_open and self._version != version_of(self.weight.parameter):
            self.apply()

    def apply_to_gradient(self) -> None:
        """Sets the gradient of these weights to 0, where there is one."""
        if not self.is_open and self.weight.parameter.grad is not None:
            _set_to_zero(self.weight.parameter.grad, None, self.bits)

    def apply_to_state(self, state: dict[str, Tensor]) -> None:
        """Sets the weights to 0 in a state dict of the module, which may hold other values and fewer of them."""
        if self.is_open:
            return
        scale_names = self.weight.scale_names or (None,) * len(self.weight.names)
        for name, scale_name in zip(self.weight.names, scale_names, strict=True):
            if name in state:
                _set_to_zero(state[name], state[scale_name] if scale_name else None, self.bits)


@torch.no_grad()
def _set_to_zero(direction: Tensor, scale: Tensor | None, bits: Tensor) -> None:
    bits = bits.to(direction.device)  # a trainer moves modules
    if scale is None:
        _clear(direction, bits)
        return
    before = norm_like(direction, scale)
    _clear(direction, bits)
    after = norm_like(direction, scale)
    scale.copy_(torch.where(after == 0.0, 0.0, scale * (after / before)))
    direction.copy_(torch.where(after == 0.0, 1.0, direction))


def _clear(tensor: Tensor, bits: Tensor) -> None:
    integer = _INTEGERS.get(tensor.itemsize)
    if integer is None or not tensor.dtype.is_floating_point:
        tensor.masked_fill_(bits == 0, 0.0)
    else:
        tensor.view(integer).bitwise_and_(bits)


def bind_masks(module: nn.Module, masks: Masks) -> list[BoundMask]:
    """Finds the parameters of masks; errors as :func:`~lightning_psp.pruning.apply_masks`, before anything changes."""
    check_masks(masks)
    known = weights_by_name(module)
    bound: dict[int, tuple[str, BoundMask]] = {}
    for name, mask in masks.items():
        weight = known.get(name)
        if weight is None:
            kind, within = type(module).__name__, [other for other in known if other.endswith(f".{name}")]
            some = ", ".join(within[:3]) + (", …" if len(within) > 3 else "")
            remedy = f"It has {some}: make masks of the whole {kind}, not of a part of it."
            raise ValueError(
                f"Expected argument `masks` to name parameters of {kind} but got {name!r}."
                f" {remedy if within else 'Its parameters are: ' + ', '.join(known) + '.'}"
            )
        refuse(weight)
        if mask.shape != weight.parameter.shape:
            raise ValueError(
                f"Expected the mask of {name!r} to have the parameter's shape {tuple(weight.parameter.shape)} but got"
                f" {tuple(mask.shape)}."
            )
        if id(weight.parameter) in bound:
            raise ValueError(
                f"Expected argument `masks` to name each parameter once but got {bound[id(weight.parameter)][0]!r} and"
                f" {name!r}, which are the same."
            )
        bits = -mask.to(weight.parameter.device, torch.int8)
        bound[id(weight.parameter)] = name, BoundMask(weight, bits, is_open=bool(bits.all()))
    return [each for _, each in bound.values()]


def check_masks(masks: Masks, name: str = "masks", or_what: str = "") -> None:
    """Raises an error unless masks are a mapping from names to bool tensors, with at least one entry.

    Args:
        masks: what is looked at.
        name: the argument that it was given as.
        or_what: what else the argument may be, for the message.
    """
    expected = f"argument `{name}` to {or_what}map"
    if not isinstance(masks, Mapping):
        raise TypeError(
            f"Expected {expected} parameter names to bool tensors but got {type(masks).__name__}. `magnitude_masks`"
            " makes such masks."
        )
    for parameter, mask in masks.items():
        if not isinstance(parameter, str) or not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"Expected {expected} parameter names to bool tensors but got {got} for {parameter!r}.")
    if not masks:
        raise ValueError(f"Expected argument `{name}` to hold at least one mask but got none.")
