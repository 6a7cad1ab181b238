"""Operations on many tensors at once; one after another where a version of torch has none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_psp.torch_private.names import find

_copy_: Any = find("torch._foreach_copy_")
_zero_: Any = find("torch._foreach_zero_")
_mul: Any = find("torch._foreach_mul")
_abs: Any = find("torch._foreach_abs")
_clamp_max_: Any = find("torch._foreach_clamp_max_")
_sub_: Any = find("torch._foreach_sub_")
_addcmul_: Any = find("torch._foreach_addcmul_")


def products(tensors: Sequence[Tensor], factors: Sequence[float]) -> Sequence[Tensor]:
    """Each tensor times its factor.

    Example:
        >>> import torch
        >>> products([torch.tensor(3.0), torch.tensor(5.0)], [2.0, 0.5])
        (tensor(6.), tensor(2.5000))
    """
    if _mul is None:
        return tuple(tensor * factor for tensor, factor in zip(tensors, factors, strict=True))
    return tuple(_mul(tensors, factors))


def fill_with_products_(tensors: Sequence[Tensor], number: float | Tensor, factors: Sequence[float]) -> None:
    """Sets each tensor to its factor times a number, or times a tensor of one.

    Example:
        >>> import torch
        >>> tensors = [torch.tensor(0.0), torch.tensor(0.0)]
        >>> fill_with_products_(tensors, torch.tensor(3.0), [2.0, 0.5])
        >>> tensors
        [tensor(6.), tensor(1.5000)]
    """
    if isinstance(number, Tensor) and _copy_ is not None and tensors:
        _copy_(tensors, products([number] * len(factors), factors))
        return
    for tensor, factor in zip(tensors, factors, strict=True):
        product = number * factor
        tensor.copy_(product) if isinstance(product, Tensor) else tensor.fill_(product)


def zero_(tensors: Sequence[Tensor]) -> None:
    """Sets all values to 0.

    Example:
        >>> import torch
        >>> tensor = torch.tensor([1.0, 2.0])
        >>> zero_([tensor])
        >>> tensor
        tensor([0., 0.])
    """
    if _zero_ is not None and tensors:
        _zero_(tensors)
    else:
        for tensor in tensors:
            tensor.zero_()


def absolutes(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The absolute values of each tensor.

    Example:
        >>> import torch
        >>> absolutes([torch.tensor([-1.0, 2.0])])[0]
        tensor([1., 2.])
    """
    found: Sequence[Tensor] = [tensor.abs() for tensor in tensors] if _abs is None else _abs(tensors)
    return found


def clamp_max_(tensors: Sequence[Tensor], bound: float) -> None:
    """Puts the bound in the place of all values above it.

    Example:
        >>> import torch
        >>> tensor = torch.tensor([-1.0, 2.0])
        >>> clamp_max_([tensor], 1.0)
        >>> tensor
        tensor([-1.,  1.])
    """
    if _clamp_max_ is not None:
        _clamp_max_(tensors, bound)
    else:
        for tensor in tensors:
            tensor.clamp_max_(bound)


def subtract_(tensors: Sequence[Tensor], number: float) -> None:
    """Subtracts a number from each value.

    Example:
        >>> import torch
        >>> tensor = torch.tensor([-1.0, 2.0])
        >>> subtract_([tensor], 1.0)
        >>> tensor
        tensor([-2.,  1.])
    """
    if _sub_ is not None:
        _sub_(tensors, number)
    else:
        for tensor in tensors:
            tensor.sub_(number)


def add_products_(tensors: Sequence[Tensor], first: Sequence[Tensor], second: Sequence[Tensor], factor: float) -> None:
    """Adds a factor times the product of two others to each tensor.

    Example:
        >>> import torch
        >>> tensor = torch.tensor([1.0, 2.0])
        >>> add_products_([tensor], [tensor], [torch.tensor([1.0, 3.0])], 0.5)
        >>> tensor
        tensor([1.5000, 5.0000])
    """
    if _addcmul_ is not None:
        _addcmul_(tensors, first, second, value=factor)
    else:
        for tensor, one, other in zip(tensors, first, second, strict=True):
            tensor.addcmul_(one, other, value=factor)
