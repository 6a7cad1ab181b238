"""λ that follows the norms of the gradients of loss and penalty, written out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_psp.lightnings import AnyCallback
from lightning_psp.schedules import Schedule, TrainingProgress


def norm(gradients: Sequence[Tensor]) -> float:
    """Of the gradient by all parameters."""
    return float(torch.cat([gradient.flatten().double() for gradient in gradients]).norm())


class Rule:
    """The running means: those of every tenth optimiser step."""

    def __init__(self) -> None:
        self.loss: list[float] = []
        self.penalty: list[float] = []

    def lam(self, step: int, loss: Sequence[Tensor], penalty: Sequence[Tensor]) -> float:
        """λ of the first batch of a step, from the gradients of the user's loss and of R."""
        if step % 10 == 0:
            self.loss.append(norm(loss))
            self.penalty.append(norm(penalty))
        return 0.3 * self.mean(self.loss) / self.mean(self.penalty)

    @staticmethod
    def mean(norms: list[float]) -> float:
        """Each value weighs 0.1, times 0.9 for each that came later; the first has what is left."""
        later = len(norms) - 1
        weights = [0.9**later, *(0.1 * 0.9 ** (later - number) for number in range(1, later + 1))]
        assert abs(sum(weights) - 1) < 1e-12
        return sum(weight * value for weight, value in zip(weights, norms, strict=True))


class Lams(AnyCallback):
    """Keeps what is logged as λ for each batch, NaN where there was no layer."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.values.append(float(trainer.callback_metrics.get("psp/lam", math.nan)))


class Given(Schedule):
    """λ of each batch, known before."""

    def __init__(self, values: list[float]) -> None:
        self.values = iter(values)

    def factor(self, progress: TrainingProgress) -> float:
        return next(self.values)
