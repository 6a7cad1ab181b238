"""Pruning: setting weights to 0 and keeping them there.

A network goes in, masks come out (`masks.py`: open it first), and callbacks hold them while a trainer fits
(`holding.py`), under given masks or such that grow during the training (`lobster.py`).
"""

from lightning_psp.pruning.lobster import LobsterPruning
from lightning_psp.pruning.masked_training import MaskedTraining
from lightning_psp.pruning.masks import apply_masks, magnitude_masks, random_masks_like
from lightning_psp.pruning.pruning_step import PruningStep
from lightning_psp.pruning.shares import Sparsity, sparsity
from lightning_psp.pruning.unit_removal import remove_constant_units

__all__ = [
    "LobsterPruning",
    "MaskedTraining",
    "PruningStep",
    "Sparsity",
    "apply_masks",
    "magnitude_masks",
    "random_masks_like",
    "remove_constant_units",
    "sparsity",
]
