"""Measures of a trained network that need more than one pass."""

from lightning_psp.analysis.gradient_parts import GradientParts, psp_gradient_parts

__all__ = ["GradientParts", "psp_gradient_parts"]
