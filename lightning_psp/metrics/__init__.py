"""Measures of potentials as metrics of torchmetrics."""

from lightning_psp.metrics.entropy import PSPEntropy
from lightning_psp.metrics.mean_square import MeanSquarePotential

__all__ = ["MeanSquarePotential", "PSPEntropy"]
