"""Files of PyTorch that hold tensors, numbers and strings, and no code."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch


def read_plain(path: str | Path) -> Any:
    """What a file of PyTorch holds, tensors on the CPU; None if it is no such file, or holds code."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, LookupError, ValueError):
        return None
