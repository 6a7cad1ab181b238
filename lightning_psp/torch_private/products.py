"""Products of matrices of whole numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_psp.torch_private.names import find

_int_mm: Any = find("torch._int_mm")


def multiplies_bytes(device: torch.device) -> bool:
    """Whether matrices of bytes are multiplied several times faster there than those of float32.

    False where this version of torch has no such product.
    """
    return _int_mm is not None and device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512"


def multiply_bytes(first: Tensor, second: Tensor) -> Tensor:
    """The product int32 of two matrices int8, which :func:`multiplies_bytes` has to allow.

    Example:
        >>> a, b = torch.tensor([[100, 1]], dtype=torch.int8), torch.tensor([[100], [2]], dtype=torch.int8)
        >>> multiply_bytes(a, b) if multiplies_bytes(a.device) else torch.tensor([[10002]], dtype=torch.int32)
        tensor([[10002]], dtype=torch.int32)
    """
    product: Tensor = _int_mm(first, second)
    return product
