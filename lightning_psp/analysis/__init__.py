"""Measures of a trained network that need more than one pass.

A network and batches of data come in; a frozen result comes out, which can be saved and drawn, and the network is left
as it was. Open `constant_units.py` first, the shortest.
"""

from lightning_psp.analysis.constant_units import ConstantStates, ConstantUnits, constant_units
from lightning_psp.analysis.gradient_parts import GradientParts, psp_gradient_parts
from lightning_psp.analysis.hessian import HessianSpectrum, TraceEstimate, hessian_eigenvalues, hessian_trace
from lightning_psp.analysis.layer_summary import LayerSummary, SummarisedLayer, layer_summary
from lightning_psp.analysis.plane import LossPlane, loss_plane

__all__ = [
    "ConstantStates",
    "ConstantUnits",
    "GradientParts",
    "HessianSpectrum",
    "LayerSummary",
    "LossPlane",
    "SummarisedLayer",
    "TraceEstimate",
    "constant_units",
    "hessian_eigenvalues",
    "hessian_trace",
    "layer_summary",
    "loss_plane",
    "psp_gradient_parts",
]
