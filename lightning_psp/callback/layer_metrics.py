"""What is measured of the layers over an epoch, as metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_psp.functional.totals import Total, add_up_weighted
from lightning_psp.metrics import MeanSquarePotential, PSPEntropy

# For each layer the sum of z² and the number of values.
LayerSums: TypeAlias = dict[str, tuple[Total, int]]

# Steps whose sums wait to be added. An accelerator keeps a number for each layer of each of them.
_MOST_WAITING = 100


@dataclass(frozen=True)
class LayerMetrics:
    """The metrics of a layer over one epoch of training, validation or test.

    Args:
        mean_square: its ⟨z²⟩.
        entropies: its PSP-entropies by order, where they are measured: of hidden layers, in evaluations.

    The attributes ``entropy``, ``entropy2``, ``entropy3``, … are those of order 1, 2, 3, …

    Example:
        >>> metrics = LayerMetrics(MeanSquarePotential(), {1: PSPEntropy(num_classes=2)})
        >>> metrics.entropy
        PSPEntropy()
        >>> metrics.entropy2
        Traceback (most recent call last):
            ...
        AttributeError: PSP-entropy of order 2 was not measured of this layer; measured were the orders [1].
    """

    mean_square: MeanSquarePotential
    entropies: Mapping[int, PSPEntropy] = field(default_factory=dict)

    def __dir__(self) -> list[str]:
        """The entropies are among the names that an editor proposes."""
        return [*super().__dir__(), *(f"entropy{'' if order == 1 else order}" for order in self.entropies)]

    def __getattr__(self, name: str) -> PSPEntropy:
        """The entropy of an order."""
        stem, order = name[: len("entropy")], name[len("entropy") :] or "1"
        if stem != "entropy" or not order.isdecimal():
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if int(order) not in self.entropies:
            raise AttributeError(
                f"PSP-entropy of order {order} was not measured of this layer; measured were the orders"
                f" {sorted(self.entropies)}."
            )
        return self.entropies[int(order)]


class MeanSquares:
    """⟨z²⟩ of every layer over the steps of an epoch, each value weighing the same.

    What steps have found waits until it is asked for, or is more than a few: then each layer's metric takes its part at
    once. So a step spends no time on metrics, and no accelerator waits in it.

    Example:
        >>> squares = MeanSquares()
        >>> squares.add({"fc": (8.0, 4)})
        >>> squares.add({"fc": (torch.tensor(1.0), 2)})
        >>> squares.means()
        {'fc': 1.5}
    """

    def __init__(self) -> None:
        """Starts without any layer."""
        self._metrics: dict[str, MeanSquarePotential] = {}
        self._waiting: list[LayerSums] = []

    def add(self, step: LayerSums) -> None:
        """Adds a step: for each layer the sum of z² and the number of values."""
        self._waiting.append(step)
        if len(self._waiting) == _MOST_WAITING:
            self._add_waiting()

    @property
    def metrics(self) -> dict[str, MeanSquarePotential]:
        """The metric of each layer."""
        self._add_waiting()
        return self._metrics

    def means(self) -> dict[str, float]:
        """For each layer the mean of z² so far."""
        return {layer: float(metric.compute()) for layer, metric in self.metrics.items()}

    def synchronise(self, processes: int) -> None:
        """Takes in the steps of all processes, each of which has to call this."""
        gathered: list[dict[str, list[Tensor]]] = [{} for _ in range(processes)]
        torch.distributed.all_gather_object(gathered, self.state())
        self._metrics = {}
        for state in gathered:
            self.load(state)

    def state(self) -> dict[str, list[Tensor]]:
        """For each layer the sum of z² and the number of values, as tensors on the processor."""
        return {layer: [metric.square_sum.cpu(), metric.elements.cpu()] for layer, metric in self.metrics.items()}

    def load(self, state: Mapping[str, list[Tensor]]) -> None:
        """Takes in what :meth:`state` gave."""
        self.add({layer: (float(square_sum), int(elements)) for layer, (square_sum, elements) in state.items()})

    def _add_waiting(self) -> None:
        layers: dict[str, tuple[list[Total], list[int]]] = {}
        for step in self._waiting:
            for layer, (square_sum, elements) in step.items():
                square_sums, numbers = layers.setdefault(layer, ([], []))
                square_sums.append(square_sum)
                numbers.append(elements)
        self._waiting = []
        # Tensors that are made in inference mode could not be changed outside of it.
        with torch.inference_mode(False):
            for layer, (square_sums, numbers) in layers.items():
                if layer not in self._metrics:
                    device = next((total.device for total in square_sums if isinstance(total, Tensor)), "cpu")
                    self._metrics[layer] = MeanSquarePotential(sync_on_compute=False).to(device)
                self._metrics[layer].add_sums(square_sums, sum(numbers))


def mean_over_layers(sums: LayerSums) -> Total:
    """⟨z²⟩ of a network: the mean over layers, each layer weighing the same.

    Example:
        >>> mean_over_layers({"conv": (8.0, 4), "fc": (8.0, 2)})
        3.0
    """
    return add_up_weighted([(1 / elements / len(sums), total) for total, elements in sums.values()])
