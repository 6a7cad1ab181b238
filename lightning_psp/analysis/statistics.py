"""Running statistics of batch norms, taken anew."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from lightning_psp.analysis.batches import Loss, device_of, moved, samples_in
from lightning_psp.analysis.unchanged import NORMALISATIONS


def reestimate_statistics(module: nn.Module, data: Iterable[Any], loss: Loss) -> None:
    """Replaces the running statistics of batch norms by the means of those of the batches of data.

    Each batch weighs as many as its samples. Everything else of the network stays in its mode.

    Args:
        module: the network; its modes and the momentum of its batch norms are left as this needs them.
        data: the batches.
        loss: calls the network with a batch.

    Example:
        >>> import torch
        >>> network = nn.BatchNorm1d(1).eval()
        >>> batches = [(torch.tensor([[0.0], [2.0]]),), (torch.tensor([[0.0], [0.0], [0.0], [4.0]]),)]
        >>> reestimate_statistics(network, batches, lambda module, batch: module(batch[0]))
        >>> network.running_mean, network.running_var  # of 1 and 1, of 2 and 4; for 2 and 4 samples
        (tensor([1.]), tensor([3.3333]))
    """
    found: list[Any] = [part for part in module.modules() if isinstance(part, NORMALISATIONS)]
    norms = [part for part in found if part.running_mean is not None]
    if not norms:
        return
    device, samples = device_of(module), 0
    for norm in norms:
        norm.train()
        norm.reset_running_stats()  # NaN would stay, whatever it weighs
    for batch in data:
        size = samples_in(batch)
        if size == 0:
            continue
        samples += size
        for norm in norms:
            norm.momentum = size / samples
        loss(module, moved(batch, device))
    for norm in norms:
        norm.eval()
