"""Measures of potentials as metrics of torchmetrics.

Potentials come in batch by batch, and with them the classes of the samples; sums and counts are kept, merged across
processes and computed by the functions of `functional`. Open `mean_square.py` first.
"""

from lightning_psp.metrics.entropy import PSPEntropy
from lightning_psp.metrics.mean_square import MeanSquarePotential

__all__ = ["MeanSquarePotential", "PSPEntropy"]
