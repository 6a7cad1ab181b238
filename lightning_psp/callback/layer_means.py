"""Means of z² over layers, batches and epochs."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from lightning_psp.functional.totals import Total, add_up

# For each layer the sum of z² and the number of values.
LayerSums: TypeAlias = dict[str, tuple[Total, int]]


class LayerMeans:
    """⟨z²⟩ of every layer over many batches, each value weighing the same.

    Sums stay on the device of the potentials until they are read, so that updating does not wait for it.

    Example:
        >>> means = LayerMeans()
        >>> means.update({"fc": (8.0, 4)})
        >>> means.update({"fc": (torch.tensor(1.0), 2)})
        >>> means.compute()
        {'fc': 1.5}
    """

    def __init__(self) -> None:
        """Starts without any layer."""
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._counts: dict[str, int] = {}
        self._numbers: dict[str, float] = {}

    def update(self, layers: LayerSums) -> None:
        """Adds a batch: for each layer the sum of z² and the number of values."""
        tensors: dict[str, Tensor] = {}
        for layer, (total, elements) in layers.items():
            self._counts[layer] = self._counts.get(layer, 0) + elements
            if isinstance(total, Tensor):
                tensors[layer] = total
            else:
                self._numbers[layer] = self._numbers.get(layer, 0.0) + total
        if not tensors:
            return
        names = tuple(tensors)
        device = next(iter(tensors.values())).device
        # mps has no float64
        dtype = torch.float32 if device.type == "mps" else torch.float64
        batch = torch.stack([total.to(device) for total in tensors.values()]).to(dtype)
        self._sums[names] = self._sums[names] + batch if names in self._sums else batch

    def sums(self) -> dict[str, tuple[float, int]]:
        """For each layer the sum of z² and the number of values so far."""
        sums = dict(self._numbers)
        for names, totals in self._sums.items():
            for layer, total in zip(names, totals.tolist(), strict=True):
                sums[layer] = sums.get(layer, 0.0) + total
        return {layer: (total, self._counts[layer]) for layer, total in sums.items()}

    def load(self, sums: dict[str, tuple[float, int]]) -> None:
        """Takes up sums given by :meth:`sums` in place of its own."""
        self.reset()
        for layer, (total, elements) in sums.items():
            self._numbers[layer] = total
            self._counts[layer] = elements

    def compute(self) -> dict[str, float]:
        """For each layer the mean of z² so far."""
        return {layer: total / elements for layer, (total, elements) in self.sums().items()}

    def reset(self) -> None:
        """Forgets every layer."""
        self._sums.clear()
        self._counts.clear()
        self._numbers.clear()


def mean_over_layers(sums: LayerSums) -> Total:
    """⟨z²⟩ of a network: the mean over layers, each layer weighing the same.

    Example:
        >>> mean_over_layers({"conv": (8.0, 4), "fc": (8.0, 2)})
        3.0
    """
    return add_up([total / elements for total, elements in sums.values()]) / len(sums)
