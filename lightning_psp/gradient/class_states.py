"""The graded states of the units of a layer, summed by class, and the gradient of the entropy that passes them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_psp.functional.precision import accumulation_dtype
from lightning_psp.functional.soft_entropy import class_sums
from lightning_psp.torch_private.autograd import unwatched


@dataclass(frozen=True)
class BatchClasses:
    """The classes of the samples of a batch, numbered among those that occur in it.

    Args:
        labels: the class of each sample, ``[batch]``.
        counts: the number of samples of each class, ``[classes]``.
    """

    labels: Tensor
    counts: Tensor


class ClassStates:
    """The graded states of one pass of a layer, summed over the samples of each class.

    Args:
        z: the potential.
        classes: the classes of the batch.
        temperature: temperature of the states.
        unit_dim: the dimension of the channels where these are the units; None where the elements are.
    """

    def __init__(self, z: Tensor, classes: BatchClasses, temperature: float, unit_dim: int | None) -> None:
        self.shape = z.shape
        self.classes = classes
        self._temperature = temperature
        self._unit_dim = unit_dim if z.ndim > 2 else None
        self._labels = classes.labels.to(z.device)
        self.sums: Tensor | None = None
        if len(z) == len(self._labels):
            states = self._states(z.detach())
            if self._unit_dim is not None:
                states = states.movedim(self._unit_dim, -1).flatten(1, -2).mean(dim=1)
            self.sums = class_sums(states, self._labels, len(classes.counts))

    def add_gradient(self, gradient: Tensor, z: Tensor, slopes: Tensor, arrived: float | Tensor) -> Tensor:
        """Adds the gradient of the entropy to one that passes the potential.

        Args:
            gradient: gradient of the shape of the potential.
            z: the potential.
            slopes: derivative of the term by the state of a unit in a sample of each class, ``[classes, units]``.
            arrived: the gradient that arrived at the loss.
        """
        states = self._states(z)
        step: Tensor = (1 - states).mul_(states).mul_(self._by_unit(slopes[self._labels])).div_(self._temperature)
        step.mul_(arrived.to(step) if isinstance(arrived, Tensor) else arrived)
        return gradient + step.to(gradient.dtype)

    def _by_unit(self, slopes: Tensor) -> Tensor:
        """Slopes ``[batch, units]`` where they belong in the potential."""
        if self._unit_dim is None:
            return slopes.view(self.shape)
        positions = self.shape[1:].numel() // slopes.shape[1]
        shape = [len(slopes)] + [1] * (len(self.shape) - 1)
        shape[self._unit_dim] = slopes.shape[1]
        return slopes.view(shape) / positions

    def _states(self, z: Tensor) -> Tensor:
        # A watch would take a sigmoid for a nonlinearity of the network.
        with unwatched():
            states: Tensor = torch.sigmoid(z.to(accumulation_dtype(z.dtype)) / self._temperature)
        return states
