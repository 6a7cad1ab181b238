"""Timing of work on a device."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

Batches = list[tuple[Tensor, Tensor]]


def wait(device: str) -> None:
    """Waits until the device has done its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: str) -> tuple[float, float]:
    """Wall and processor time."""
    wait(device)
    wall, processor = time.perf_counter(), time.process_time()
    work()
    wait(device)
    return time.perf_counter() - wall, time.process_time() - processor
