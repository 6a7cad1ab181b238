"""Entropies in bits from counts and from probabilities."""

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


def binary_entropy(probabilities: Tensor) -> Tensor:
    """Entropy in bits of a state of this probability; its gradient is 0, not infinite, at the probabilities 0 and 1.

    Example:
        >>> binary_entropy(torch.tensor([0.0, 0.25, 0.5, 1.0]))
        tensor([0.0000, 0.8113, 1.0000, 0.0000])
    """
    is_certain = (probabilities <= 0) | (probabilities >= 1)
    p = probabilities.masked_fill(is_certain, 0.5)
    entropies = entropy_term(p) + entropy_term(1 - p)
    return entropies.masked_fill(is_certain, 0.0)
