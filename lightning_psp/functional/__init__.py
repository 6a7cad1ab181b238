"""Measures of potentials as pure functions.

Tensors of potentials come in, numbers come out: mean squares, penalties and entropies, with the checks of what is
given. Nothing here knows of networks or trainings. Open `penalty.py` first.
"""

from lightning_psp.functional.entropy import estimate_psp_entropy, psp_entropy
from lightning_psp.functional.estimate import EntropyEstimate
from lightning_psp.functional.mean_square import mean_square_potential
from lightning_psp.functional.soft_entropy import soft_psp_entropy

__all__ = ["EntropyEstimate", "estimate_psp_entropy", "mean_square_potential", "psp_entropy", "soft_psp_entropy"]
