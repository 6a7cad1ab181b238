"""Distributions of weights and potentials, layer by layer, in fixed bins: the first paper's Fig. 3."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor

from lightning_psp import record_potentials

BINS = 2000
WEIGHT_LIMIT = 1.0  # bins from -1 to 1
POTENTIAL_LIMIT = 200.0


class Histogram:
    """Counts of values in equal bins from ``-limit`` to ``limit``, number of values beyond them, and moments.

    Args:
        limit: Upper end of the last bin.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.counts = torch.zeros(BINS, dtype=torch.long)
        self.beyond = 0
        self.total = torch.zeros((), dtype=torch.float64)
        self.square_total = torch.zeros((), dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Count further values."""
        values = values.detach().flatten().cpu()
        self.counts += torch.histc(values, BINS, -self.limit, self.limit).long()
        self.beyond += int((values.abs() > self.limit).sum())
        self.total += values.double().sum()
        self.square_total += values.double().square().sum()

    def summary(self) -> dict[str, Any]:
        """Limit, counts, number of values beyond; mean, and standard deviation over all values."""
        number = int(self.counts.sum()) + self.beyond
        mean = self.total / number
        deviation = (self.square_total / number - mean.square()).clamp_min(0).sqrt()
        return {
            "limit": self.limit,
            "mean": mean.item(),
            "deviation": deviation.item(),
            "beyond": self.beyond,
            "counts": self.counts.tolist(),
        }


def weight_histograms(module: LightningModule) -> dict[str, dict[str, Any]]:
    """Histograms of the weights of each layer: of all parameters of two or more dimensions."""
    histograms = {}
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            histogram = Histogram(WEIGHT_LIMIT)
            histogram.add(parameter)
            histograms[name.removeprefix("network.").removesuffix(".weight")] = histogram.summary()
    return histograms


@torch.no_grad()
def potential_histograms(module: LightningModule, data: LightningDataModule) -> dict[str, dict[str, Any]]:
    """Histograms of the potentials of each layer over the validation images, logits included."""
    histograms: dict[str, Histogram] = {}
    module.eval()
    for batch in data.val_dataloader():
        images, labels = data.on_after_batch_transfer(data.transfer_batch_to_device(batch, module.device, 0), 0)
        with record_potentials(module) as potentials:
            torch.nn.functional.cross_entropy(module(images), labels)
        for layer, potential in potentials.items():
            histograms.setdefault(layer, Histogram(POTENTIAL_LIMIT)).add(potential)
    return {layer.removeprefix("network."): histogram.summary() for layer, histogram in histograms.items()}


def add_histograms(summaries: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Add the counts of several trainings, layer by layer."""
    return {
        layer: {
            "limit": histogram["limit"],
            "beyond": sum(summary[layer]["beyond"] for summary in summaries),
            "counts": torch.tensor([summary[layer]["counts"] for summary in summaries]).sum(dim=0).tolist(),
        }
        for layer, histogram in summaries[0].items()
    }
