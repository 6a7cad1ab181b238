"""What PSP-entropy takes, and the errors for what it does not."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lightning_psp.functional.mean_square import _check_potential

Unit: TypeAlias = Literal["element", "channel"]
Reduction: TypeAlias = Literal["mean", "none"]

UNITS: tuple[str, ...] = get_args(Unit)
REDUCTIONS: tuple[str, ...] = get_args(Reduction)
# The joint state of so many units fits into the bits of a positive int64.
MAX_ORDER = 62
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_arguments(
    num_classes: int, order: int, unit: str, reduction: str, unit_dim: int, max_sets: int, seed: int
) -> None:
    """Raises an error unless the arguments of PSP-entropy are those that it takes."""
    _check_integer("num_classes", num_classes, at_least=1)
    _check_integer("order", order, at_least=1)
    if order > MAX_ORDER:
        raise ValueError(f"Expected argument `order` to be at most {MAX_ORDER} but got {order}.")
    if unit not in UNITS:
        raise ValueError(f"Expected argument `unit` to be one of {', '.join(UNITS)} but got {unit!r}.")
    if reduction not in REDUCTIONS:
        raise ValueError(f"Expected argument `reduction` to be one of {', '.join(REDUCTIONS)} but got {reduction!r}.")
    if reduction == "none" and order != 1:
        raise ValueError(
            f"Expected argument `reduction` to be 'mean' for sets of units (`order` {order}) but got 'none', which gives"
            " one value a unit: use `order=1`."
        )
    _check_integer("unit_dim", unit_dim)
    if unit_dim == 0:
        raise ValueError("Expected argument `unit_dim` to be a dimension behind the batch dimension 0 but got 0.")
    _check_integer("max_sets", max_sets, at_least=2)  # one set has no standard error
    _check_integer("seed", seed, at_least=0)


def check_input(z: Tensor, target: Tensor, num_classes: int, unit: str, unit_dim: int) -> None:
    """Raises an error unless potentials and targets are those that PSP-entropy takes."""
    _check_potential(z)
    if not isinstance(target, Tensor):
        raise TypeError(f"Expected argument `target` to be a tensor but got {type(target).__name__}.")
    if z.ndim == 0:
        raise ValueError("Expected argument `z` to have shape [batch, …] but got a scalar.")
    if target.ndim != 1 or len(target) != len(z):
        raise ValueError(
            f"Expected argument `target` to hold one class a sample, shape [{len(z)}] for `z` of shape {[*z.shape]},"
            f" but got shape {[*target.shape]}."
        )
    if target.dtype not in _INTEGERS:
        raise TypeError(f"Expected argument `target` to hold integers but got {target.dtype}.")
    if unit == "channel" and z.ndim > 1 and (not -z.ndim <= unit_dim < z.ndim or unit_dim % z.ndim == 0):
        raise ValueError(
            f"Expected argument `unit_dim` to be a dimension of `z` behind the batch dimension, 1 to {z.ndim - 1} or"
            f" {1 - z.ndim} to -1 for shape {[*z.shape]}, but got {unit_dim}."
        )
    if z.shape[1:].numel() == 0:
        raise ValueError(f"Expected argument `z` to have at least one unit but got shape {[*z.shape]}.")
    if len(z) == 0:
        return
    lowest, highest = (int(bound) for bound in target.aminmax())
    if lowest < 0 or highest >= num_classes:
        raise ValueError(
            f"Expected argument `target` to hold classes from 0 to `num_classes` - 1 = {num_classes - 1} but got"
            f" {lowest if lowest < 0 else highest}."
        )
    if z.amax().isnan():  # NaN is the largest of all numbers here; infinities have a state
        raise ValueError("Expected argument `z` to hold numbers but got NaN.")


def check_units(units: int, order: int) -> None:
    """Raises a ValueError if a layer has too few units for sets of `order`."""
    if units < order:
        raise ValueError(f"Expected at least {order} units for `order` {order} but got a layer of {units}.")


def _check_integer(name: str, value: int, at_least: int | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"Expected argument `{name}` to be an integer but got {value!r}.")
    if at_least is not None and value < at_least:
        raise ValueError(f"Expected argument `{name}` to be at least {at_least} but got {value}.")
