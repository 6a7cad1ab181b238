"""Running statistics of batch norms, taken anew."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from lightning_psp.analysis.batches import Loss, device_of, moved, samples_in
from lightning_psp.analysis.unchanged import BATCH_NORMS, NORMALISATIONS
from lightning_psp.functional.precision import widest_float


def reestimate_statistics(module: nn.Module, data: Iterable[Any], loss: Loss) -> None:
    """Replaces the running statistics of batch norms by the means of those of the batches of data.

    Each batch weighs as many as its samples; of a batch norm that a batch passes several times its statistics are the
    mean over these passes. Everything else of the network stays in its mode.

    Args:
        module: the network; its modes and the momentum of its batch norms are left as this needs them.
        data: the batches.
        loss: calls the network with a batch.

    Raises:
        ValueError: if a batch has a single value for a channel.

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
    device = device_of(module)
    for norm in norms:
        norm.train()
        # The mean over all passes since the last reset. Instance norms have no such thing, but that of the last pass.
        norm.momentum = None if isinstance(norm, BATCH_NORMS) else 1.0
    sums: dict[Any, tuple[int, Tensor | float, Tensor | float]] = {}
    for batch in data:
        size = samples_in(batch)
        if size == 0:
            continue
        for norm in norms:
            norm.reset_running_stats()  # NaN would stay, whatever it weighs
        try:
            loss(module, moved(batch, device))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f'A batch of {size} is too small for the statistics that batch_norm="reestimate" takes: {error}. Leave'
                " out the last batch (`drop_last=True`), or choose another batch size."
            ) from error
        for norm in norms:
            if norm.num_batches_tracked == 0 and (isinstance(norm, BATCH_NORMS) or _is_reset(norm)):
                continue  # this batch did not pass it
            samples, mean, variance = sums.get(norm, (0, 0.0, 0.0))
            dtype = widest_float(norm.running_mean.device)
            sums[norm] = (
                samples + size,
                mean + size * norm.running_mean.to(dtype),
                variance + size * norm.running_var.to(dtype),
            )
    for norm, (samples, mean, variance) in sums.items():
        norm.running_mean.copy_(mean / samples)
        norm.running_var.copy_(variance / samples)
    for norm in norms:
        norm.eval()


def _is_reset(norm: Any) -> bool:
    """Whether the statistics of an instance norm, which counts no batches, are those that it starts with."""
    return not norm.running_mean.any() and bool((norm.running_var == 1).all())
