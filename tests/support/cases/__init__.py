"""The form of a test case: a network, a batch, a loss and what is known about the layers.

The tables are in `activations`, `structures`, `checkpoints` and `torchvision`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.reference import OutputLayer, Reduction

REDUCTIONS: tuple[Reduction, ...] = ("mean", "sum", "squared_mean")


def cross_entropy(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, labels = batch
    return F.cross_entropy(network(inputs), labels)


def classification_batch(*shape: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(*shape), torch.randint(classes, shape[:1])


@dataclass(frozen=True)
class Case:
    name: str
    network: Callable[[], nn.Module]
    batch: Callable[[], Any]
    loss: Callable[[nn.Module, Any], Tensor] = cross_entropy
    layers: int | None = None  # where known without the reference
    names: tuple[str, ...] | None = None  # where the design says them
    output_layer: OutputLayer = "output"
    reductions: tuple[Reduction, ...] = REDUCTIONS
    partly_live: bool = False  # some potentials do not lie on the loss's path
    refusal: str = ""  # an error with this text will do as well as the gradient
    needs_torchvision: bool = False

    def build(self, batches: int = 1) -> tuple[nn.Module, list[Any]]:
        """The network in training mode and its batches, the same at each call, in float64."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = self.network().double().train()
            made = [_double(self.batch()) for _ in range(batches)]
        return network, made

    def __str__(self) -> str:
        return self.name


def _double(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch.double() if batch.is_floating_point() else batch
    return tuple(_double(part) for part in batch)
