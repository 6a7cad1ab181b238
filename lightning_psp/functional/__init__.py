"""Measures of potentials as pure functions."""

from lightning_psp.functional.soft_entropy import soft_psp_entropy

__all__ = ["soft_psp_entropy"]
