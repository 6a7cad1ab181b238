"""Means of z² over layers, batches and epochs."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

# For each layer the sum of z² and the number of values.
LayerSums: TypeAlias = dict[str, tuple[Tensor, int]]


class LayerMeans:
    """⟨z²⟩ of every layer over many batches, each value weighing the same.

    Sums stay on the device of the potentials until they are read, so that updating does not wait for it.

    Example:
        >>> means = LayerMeans()
        >>> means.update({"fc": (torch.tensor(8.0), 4)})
        >>> means.update({"fc": (torch.tensor(1.0), 2)})
        >>> means.compute()
        {'fc': 1.5}
    """

    def __init__(self) -> None:
        """Starts without any layer."""
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._counts: dict[str, int] = {}
        self._restored: dict[str, float] = {}

    def update(self, layers: LayerSums) -> None:
        """Adds a batch: for each layer the sum of z² and the number of values."""
        if not layers:
            return
        for layer, (_, elements) in layers.items():
            self._counts[layer] = self._counts.get(layer, 0) + elements
        names = tuple(layers)
        first = next(iter(layers.values()))[0]
        # mps has no float64
        dtype = torch.float32 if first.device.type == "mps" else torch.float64
        batch = torch.stack([total.to(first.device) for total, _ in layers.values()]).to(dtype)
        self._sums[names] = self._sums[names] + batch if names in self._sums else batch

    def sums(self) -> dict[str, tuple[float, int]]:
        """For each layer the sum of z² and the number of values so far."""
        sums = dict(self._restored)
        for names, totals in self._sums.items():
            for layer, total in zip(names, totals.tolist(), strict=True):
                sums[layer] = sums.get(layer, 0.0) + total
        return {layer: (total, self._counts[layer]) for layer, total in sums.items()}

    def load(self, sums: dict[str, tuple[float, int]]) -> None:
        """Takes up sums given by :meth:`sums` in place of its own."""
        self.reset()
        for layer, (total, elements) in sums.items():
            self._restored[layer] = total
            self._counts[layer] = elements

    def compute(self) -> dict[str, float]:
        """For each layer the mean of z² so far."""
        return {layer: total / elements for layer, (total, elements) in self.sums().items()}

    def reset(self) -> None:
        """Forgets every layer."""
        self._sums.clear()
        self._counts.clear()
        self._restored.clear()


def mean_over_layers(sums: LayerSums) -> Tensor:
    """⟨z²⟩ of a network: the mean over layers, each layer weighing the same.

    Example:
        >>> mean_over_layers({"conv": (torch.tensor(8.0), 4), "fc": (torch.tensor(8.0), 2)})
        tensor(3.)
    """
    means = [total / elements for total, elements in sums.values()]
    return torch.stack([mean.to(means[0].device) for mean in means]).mean()
