"""Entropies in bits from counts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_psp.functional.precision import widest_float

# float32 holds every integer up to here.
LARGEST_COUNT = 2**24


def entropy_table(size: int, device: torch.device) -> Tensor:
    """What a state adds to an entropy in bits, by how often it was seen: −p·log2 p for p = 0, 1/size, …, 1.

    Example:
        >>> entropy_table(4, torch.device("cpu"))[1:4]  # of 1/4, 2/4 and 3/4
        tensor([0.5000, 0.5000, 0.3113], dtype=torch.float64)
    """
    counts = torch.arange(size + 1, device=device)
    return entropy_term(counts.to(widest_float(device)) / size)


def entropy_term(probability: Tensor) -> Tensor:
    """−p·log2 p, 0 for p = 0."""
    term: Tensor = torch.special.entr(probability) / math.log(2)
    return term
