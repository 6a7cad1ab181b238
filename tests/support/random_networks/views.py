"""Ways to read a part of a tensor's memory."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class View:
    """A way to read a part of a tensor's memory, and the tensor in which that part has other values."""

    read: Callable[[Tensor], Tensor]
    write: Callable[[Tensor, Tensor], Tensor]
    stops_gradient: bool = False


SAME = View(lambda x: x, lambda x, new: new)
DETACHED = View(lambda x: x.detach(), lambda x, new: new, stops_gradient=True)
RESHAPED = View(lambda x: x.flatten(1), lambda x, new: new.reshape(x.shape))


def reshaped(*shape: int) -> View:
    return View(lambda x: x.reshape(x.shape[0], *shape), lambda x, new: new.reshape(x.shape))


def permuted(*order: int) -> View:
    back = sorted(range(len(order)), key=order.__getitem__)
    return View(lambda x: x.permute(order), lambda x, new: new.permute(back))


def part(dim: int, start: int, end: int) -> View:
    return View(
        lambda x: x.narrow(dim, start, end - start), lambda x, new: torch.slice_scatter(x, new, dim, start, end)
    )


def selected(dim: int, index: int) -> View:
    return View(lambda x: x.select(dim, index), lambda x, new: torch.select_scatter(x, new, dim, index))
