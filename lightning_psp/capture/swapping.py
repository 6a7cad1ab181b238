"""Tensors that change places."""

from __future__ import annotations

import weakref

from torch import Tensor
from torch.utils import swap_tensors

from lightning_psp.capture.torch_private import is_held_elsewhere, swap_contents


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
