"""The types in which counts become numbers and values are summed."""

from __future__ import annotations

import torch


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which statistics of potentials of this type are summed: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32
