"""What PSP-entropy takes, and the errors for what it does not."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lightning_psp.functional.arguments import check_choice, check_integer
from lightning_psp.functional.mean_square import check_potential

Unit: TypeAlias = Literal["element", "channel"]
Reduction: TypeAlias = Literal["mean", "none"]

UNITS: tuple[str, ...] = get_args(Unit)
REDUCTIONS: tuple[str, ...] = get_args(Reduction)
# The joint state of so many units fits into a positive int64.
MAX_ORDER = 62
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_arguments(
    num_classes: int, order: int, unit: str, reduction: str, unit_dim: int, max_sets: int, seed: int
) -> None:
    """Raises an error unless the arguments of PSP-entropy are among those allowed."""
    check_integer("num_classes", num_classes, at_least=1)
    check_integer("order", order, at_least=1)
    if order > MAX_ORDER:
        raise ValueError(f"Expected argument `order` to be at most {MAX_ORDER} but got {order}.")
    check_choice("unit", unit, UNITS)
    check_choice("reduction", reduction, REDUCTIONS)
    if reduction == "none" and order != 1:
        raise ValueError(
            f"Expected argument `reduction` to be 'mean' with `order={order}`, sets of units, but got 'none', one value"
            " a unit. Use `order=1` for it."
        )
    check_integer("unit_dim", unit_dim)
    if unit_dim == 0:
        raise ValueError("Expected argument `unit_dim` to be a dimension behind the batch dimension 0 but got 0.")
    check_integer("max_sets", max_sets, at_least=2)  # a single set has no standard error
    check_integer("seed", seed, at_least=0)


def check_input(z: Tensor, target: Tensor, num_classes: int, unit: Unit, unit_dim: int) -> None:
    """Raises an error unless potentials and classes are such that PSP-entropy can be computed."""
    check_potential(z)
    if not isinstance(target, Tensor):
        raise TypeError(f"Expected argument `target` to be a tensor but got {type(target).__name__}.")
    if target.dtype not in _INTEGERS:
        has_other_width = not (target.is_floating_point() or target.is_complex() or target.dtype == torch.bool)
        remedy = "use `target.long()`" if has_other_width else "give the class of each sample, and no scores"
        raise TypeError(
            "Expected argument `target` to hold integers of type uint8, int8, int16, int32 or int64 but got"
            f" {target.dtype}: {remedy}."
        )
    if z.ndim == 0 or target.shape != z.shape[:1]:
        raise ValueError(
            "Expected arguments `z` and `target` to have shapes [batch, …] and [batch] but got"
            f" {[*z.shape]} and {[*target.shape]}."
        )
    if z.shape[1:].numel() == 0:
        raise ValueError(f"Expected argument `z` to hold at least one unit but got shape {[*z.shape]}.")
    if unit == "channel" and z.ndim > 1 and (not -z.ndim <= unit_dim < z.ndim or unit_dim % z.ndim == 0):
        raise ValueError(
            f"Expected argument `unit_dim` to be a dimension of `z` behind the batch, from 1 to {z.ndim - 1} or from"
            f" {1 - z.ndim} to -1 with shape {[*z.shape]}, but got {unit_dim}."
        )
    if len(z) == 0:
        return
    lowest, highest = (int(bound) for bound in target.aminmax())
    if lowest < 0 or highest >= num_classes:
        raise ValueError(
            f"Expected argument `target` to hold classes from 0 to {num_classes - 1} with `num_classes={num_classes}`"
            f" but got {lowest if lowest < 0 else highest}."
        )
    if z.amax().isnan():  # which is NaN where any value is, and infinite where one is
        raise ValueError("Expected argument `z` to hold numbers or infinities but got NaN.")


def check_enough_units(units: int, order: int) -> None:
    """Raises a ValueError if there is no set of `order` units."""
    if units < order:
        raise ValueError(f"Expected argument `z` to hold at least {order} units with `order={order}` but got {units}.")


def check_same_units(units: int, units_before: int, unit: Unit) -> None:
    """Raises a ValueError if the number of units has changed."""
    if units != units_before:
        remedy = " Where inputs differ in size, `unit='channel'` takes the positions of a filter as its observations."
        raise ValueError(
            f"Expected argument `z` to hold {units_before} units, as before, but got {units}."
            f"{remedy if unit == 'element' else ''}"
        )


def count_units(z: Tensor, unit: Unit, unit_dim: int) -> int:
    """The number of units in potentials ``[batch, …]``; 1 in ``[batch]``."""
    return z.shape[unit_dim] if unit == "channel" and z.ndim > 1 else z.shape[1:].numel()
