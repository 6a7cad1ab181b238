"""The Hessian of a mean loss as a matrix: central differences of the gradient, without any second derivative."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.cases import cross_entropy

STEP = 1e-5  # in float64 truncation and rounding are both about 1e-10


def dense_hessian(
    network: nn.Module,
    data: Iterable[tuple[Tensor, ...]],
    loss: Callable[[nn.Module, Any], Tensor] = cross_entropy,
    weights: Sequence[Tensor] | None = None,
) -> Tensor:
    """The Hessian of the mean over all samples, in the network's mode and in the order of its trained parameters."""
    weights = [weight for weight in network.parameters() if weight.requires_grad] if weights is None else weights
    batches = list(data)
    samples = sum(len(batch[0]) for batch in batches)

    def gradient() -> Tensor:
        mean = sum(len(batch[0]) / samples * loss(network, batch) for batch in batches)
        parts = torch.autograd.grad(mean, weights, allow_unused=True)
        pairs = zip(weights, parts, strict=True)
        return torch.cat([(torch.zeros_like(weight) if part is None else part).flatten() for weight, part in pairs])

    columns = []
    for weight in weights:
        entries = weight.data.view(-1)
        for entry in range(len(entries)):
            before = entries[entry].item()
            entries[entry] = before + STEP
            above = gradient()
            entries[entry] = before - STEP
            columns.append((above - gradient()) / (2 * STEP))
            entries[entry] = before
    return torch.stack(columns)
