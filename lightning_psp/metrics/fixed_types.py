"""Metrics whose states have the types that their sums and counts need, whatever type a network is given."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric

from lightning_psp.functional.precision import widest_float
from lightning_psp.metrics.torchmetrics_private import note_updates


class FixedTypeMetric(Metric):
    """A metric whose states move between devices, and never change their types.

    Half precision cannot hold sums over many batches, and floating point numbers are no counts. So ``set_dtype``, and
    ``to(dtype)`` of a module that holds the metric (Lightning's ``precision="16-true"``), leave the states as they are.
    Only where a device has no float64 are those in float64 rounded to float32.
    """

    def keep_synchronised(self) -> None:
        """Takes in what the metrics of all other processes hold, for good; each process has to call this."""
        with self.sync_context():
            states: dict[str, Any] = dict(self.metric_state)
        for name, state in states.items():
            if isinstance(self._defaults[name], list):  # which is one tensor now, to which no update could add
                state = [state] if len(state) > 0 else []
            setattr(self, name, state)
        note_updates(self, 1)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Adds the states of another metric; see ``torchmetrics.Metric.merge_state``."""
        super().merge_state(incoming_state)  # type: ignore[misc]  # the oldest version has none
        note_updates(self, 1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Updates would write into the states of the one who gives them.
        own = {name: copy.deepcopy(state) for name, state in state_dict.items() if name.startswith(prefix)}
        number = 1 if own else 0
        super()._load_from_state_dict(own, prefix, *args)
        note_updates(self, number)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Module:
        result: Module = super()._apply(_keeping_types(fn), exclude_state)
        return result


def _keeping_types(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function without its effect on types: what moves tensors still does."""

    @wraps(function)  # torchmetrics reads in its name what it is for
    def kept(tensor: Tensor) -> Tensor:
        if tensor.dtype == torch.float64:
            destination = function(torch.empty(0, device=tensor.device)).device
            tensor = tensor.to(widest_float(destination))
        result = function(tensor)
        return result if result.dtype == tensor.dtype else tensor.to(result.device)

    return kept
