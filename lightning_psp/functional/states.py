"""States of units, one bit each."""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch.nn import functional

from lightning_psp.functional.memory_order import memory_order
from lightning_psp.functional.validation import Unit

# Potentials that are compared at a time on a processor, few enough that the cache holds them.
_CHUNK = 2**19

# Times a number whose bytes are eight states, it has state k as bit k of its highest byte.
_GATHERING = sum(1 << (56 - 7 * k if sys.byteorder == "little" else 9 * k) for k in range(8))
_GATHERING -= (_GATHERING >> 63) << 64  # as torch writes it, with a sign


def states_of(z: Tensor) -> Tensor:
    """Which units are on, z > 0, int8 of the shape of `z`.

    Example:
        >>> import torch
        >>> states_of(torch.tensor([[1.5, -1.0, 0.0]]))
        tensor([[1, 0, 0]], dtype=torch.int8)
    """
    z = z.detach()
    if not z.is_cpu or z.numel() == 0 or memory_order(z) is None:
        return (z > 0).view(torch.int8)
    # On a processor, a comparison that writes bool takes up to four times as long.
    states = torch.empty_like(z, dtype=torch.int8)
    rows = max(1, _CHUNK * len(z) // z.numel())
    for part, out in zip(z.split(rows), states.split(rows), strict=True):
        torch.gt(part, 0, out=out)
    return states


def _joint_entropy_update(
    z: Tensor, target: Tensor, unit: Unit = "element", unit_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """States of one batch.

    Returns:
        The states of the units packed in bits, uint8 ``[observations, ceil(units / 8)]``, and the observations'
        classes, int32 ``[observations]``.
    """
    states = states_of(z).view(torch.bool)
    classes = target.int()
    if z.ndim == 1:
        states = states.unsqueeze(1)
    elif unit == "element" or z.ndim == 2:
        states = states.flatten(1)
    else:
        states = states.movedim(unit_dim, -1)
        classes = classes.repeat_interleave(states.shape[1:-1].numel())
        states = states.flatten(0, -2)
    return pack_states(states), classes


def pack_states(states: Tensor) -> Tensor:
    """Packs states into bits.

    Args:
        states: bool ``[observations, units]``.

    Returns:
        uint8 ``[observations, ceil(units / 8)]``; unit k is bit k mod 8 of byte ⌊k / 8⌋, the lowest bit first.

    Example:
        >>> import torch
        >>> pack_states(torch.tensor([[True, False, True] + 6 * [False]]))
        tensor([[5, 0]], dtype=torch.uint8)
    """
    # Padding copies, so that eight states can be read as one number whose bytes they are. The product has the states,
    # none of which carries over to another, in its highest byte.
    numbers = functional.pad(states, (0, -states.shape[1] % 8)).contiguous().view(torch.int64)
    return (numbers * _GATHERING >> 56).to(torch.uint8)


def unpack_states(packed: Tensor, dtype: torch.dtype) -> Tensor:
    """The states ``[observations, 8 · bytes]`` of packed ones, as numbers 0 and 1.

    Example:
        >>> import torch
        >>> unpack_states(torch.tensor([[5]], dtype=torch.uint8), torch.int64)
        tensor([[1, 0, 1, 0, 0, 0, 0, 0]])
    """
    values = torch.arange(256, dtype=torch.uint8, device=packed.device)
    states_of_value = ((values.unsqueeze(1) >> _bits(packed.device)) & 1).to(dtype)
    if dtype.itemsize == 1:  # eight of them are copied as one number
        states_of_value = states_of_value.view(torch.int64)
    states = states_of_value.index_select(0, packed.flatten().int())
    return states.view(dtype).view(len(packed), 8 * packed.shape[1])


def count_active(packed: Tensor) -> Tensor:
    """How many states of each row are active, int32 ``[rows]``.

    Example:
        >>> count_active(torch.tensor([[5, 1], [0, 255]], dtype=torch.uint8))
        tensor([3, 8], dtype=torch.int32)
    """
    values = torch.arange(256, dtype=torch.uint8, device=packed.device)
    active_of_value = unpack_states(values.unsqueeze(1), torch.uint8).sum(1, dtype=torch.int32)
    return active_of_value.index_select(0, packed.flatten().int()).view(packed.shape).sum(1, dtype=torch.int32)


def states_of_units(packed: Tensor, units: Tensor) -> Tensor:
    """The states of some units, uint8 ``[units, observations]``, from ``[bytes, observations]`` packed along bytes."""
    return (packed.index_select(0, units // 8) >> (units % 8).to(torch.uint8).unsqueeze(1)) & 1


def _bits(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
