"""A small classifier that writes down, for each of its backward passes, the gradient that the definition asks for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.support.small import Classifier

LAM = 0.3


def mean_square(*passes: Tensor) -> Tensor:
    """Of one layer; several passes count as one batch."""
    return torch.cat([z.flatten() for z in passes]).square().mean()


def potentials(module: Any, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three potentials of a `Classifier`, written out."""
    first = functional.linear(features, module.first.weight, module.first.bias)
    second = functional.linear(first * torch.sigmoid(first), module.second.weight, module.second.bias)
    return first, second, functional.linear(second.clamp(min=0), module.third.weight, module.third.bias)


def total(module: Any, batch: tuple[Tensor, Tensor], lam: float = LAM) -> Tensor:
    """Loss and penalty of a `Classifier`, written out."""
    layers = potentials(module, batch[0])
    loss = -layers[-1].log_softmax(1)[torch.arange(len(batch[1])), batch[1]].mean()
    return loss + lam * sum(mean_square(z) for z in layers) / 3


class Followed(Classifier):
    """Keeps the gradient of every step and, beside it, the one that the definition gives."""

    def __init__(self) -> None:
        super().__init__()
        self.expected: list[tuple[Tensor, ...]] = []
        self.mean_squares: list[list[Tensor]] = []  # of every layer in every step

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor | None:
        self.batch = batch
        return super().training_step(batch, batch_index)

    def on_after_backward(self) -> None:
        super().on_after_backward()
        with torch.enable_grad():
            self.expected.append(torch.autograd.grad(total(self, self.batch), list(self.parameters())))
        with torch.no_grad():
            self.mean_squares.append([mean_square(z) for z in potentials(self, self.batch[0])])

    def check(self, steps: int) -> None:
        """That so many backward passes ran, each with the gradient of the definition."""
        assert len(self.gradients) == len(self.expected) == steps
        for found, expected in zip(self.gradients, self.expected, strict=True):
            assert_same(found, expected)


def assert_same(found: Any, expected: Any, **settings: Any) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **{"rtol": 1e-8, "atol": 1e-12, **settings})
