"""The form of a test case: a network, a batch, a loss and what is known about the layers.

The tables are in `activations`, `structures`, `checkpoints` and `torchvision`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.reference import REDUCTIONS, OutputLayer, Reduction


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
        if self.needs_torchvision:
            pytest.importorskip("torchvision")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = self.network().double().train()
            made = [_double(self.batch()) for _ in range(batches)]
        return network, made

    def __str__(self) -> str:
        return self.name


def runs(cases: Iterable[Case]) -> pytest.MarkDecorator:
    """Runs a test with each of the reductions of each of these cases."""
    pairs = [(case, reduction) for case in cases for reduction in case.reductions]
    ids = [f"{case}-{reduction}" for case, reduction in pairs]
    return pytest.mark.parametrize(("case", "reduction"), pairs, ids=ids)


def _double(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch.double() if batch.is_floating_point() else batch
    return tuple(_double(part) for part in batch)
