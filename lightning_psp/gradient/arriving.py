"""The gradient that arrives at the loss."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_psp.functional.totals import read_on_processor
from lightning_psp.torch_private.foreach import fill_with_products_


class Arriving:
    """The gradient that arrives at the loss of a backward pass, corrected.

    Args:
        correction: what it is multiplied by.
    """

    def __init__(self, correction: float | Tensor = 1.0) -> None:
        self.value: float | Tensor = correction
        self._casts: dict[tuple[torch.dtype, torch.device], Tensor] = {}  # of a value on an accelerator
        self._correction = correction
        self._coefficients: list[Tensor] = []
        self._factors: list[float] = []
        self._has_arrived = False

    def fill_when_known(self, coefficient: Tensor, factor: float) -> None:
        """Has a number set to a factor times it before the gradient goes on, to 0 in a second pass from the loss."""
        self._coefficients.append(coefficient)
        self._factors.append(factor)

    def note(self, gradient: Tensor) -> None:
        """Takes it from the hook on the loss."""
        total = gradient.detach() if gradient.ndim == 0 else gradient.detach().sum()
        if isinstance(self._correction, Tensor):
            total = total * self._correction.to(total.device)
        # A tensor on an accelerator is not read, for the step would have to wait for it.
        self.value = read_on_processor(total)
        self._casts = {}
        # Saved for the backward pass, they may be changed only behind autograd's back.
        coefficients = [coefficient.data for coefficient in self._coefficients]
        with torch.no_grad():
            fill_with_products_(coefficients, 0.0 if self._has_arrived else self.value, self._factors)
        self._has_arrived = True

    def value_for(self, gradient: Tensor) -> float | Tensor:
        """Its value; as a tensor in the type of a gradient that goes on from there, and cast once for all of a type."""
        if not isinstance(self.value, Tensor):
            return self.value
        kind = gradient.dtype, gradient.device
        if kind not in self._casts:
            self._casts[kind] = self.value.to(gradient)
        return self._casts[kind]
