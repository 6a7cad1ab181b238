"""Batches of data: what of one is the network's input, and on which device it is."""

from __future__ import annotations

from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn


def device_of(module: nn.Module) -> torch.device | None:
    """The device of a network's first parameter or buffer; None if it has neither."""
    return next((tensor.device for tensors in (module.parameters(), module.buffers()) for tensor in tensors), None)


def moved(batch: Any, device: torch.device | None) -> Any:
    """A batch with its tensors on a device; as it is where the device is None."""
    if device is None:
        return batch
    return apply_to_collection(batch, dtype=Tensor, function=lambda tensor: tensor.to(device, non_blocking=True))


def input_of(batch: Any) -> Any:
    """The first item of a batch, which the network is called with.

    Raises:
        TypeError: if the batch is no tuple or list.
    """
    if not isinstance(batch, (tuple, list)) or not batch:
        raise TypeError(
            "Expected a batch of argument `data` to be a tuple or list whose first item is the network's input, such as"
            f" (images, labels), but got {type(batch).__name__}."
        )
    return batch[0]
