"""A small training under either Lightning: `lightning.pytorch` or the package `pytorch_lightning`.

Nothing here imports one of them before a test asks for it, for only one may be installed.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

NAMES = ("lightning.pytorch", "pytorch_lightning")
FEATURES, CLASSES, BATCH, LAM = 6, 3, 4, 0.3
LAYERS = ("first", "second")


def potentials(module: Any, features: Tensor) -> tuple[Tensor, Tensor]:
    """The two potentials, written out."""
    first = features @ module.first.weight.T + module.first.bias
    return first, first.tanh() @ module.second.weight.T + module.second.bias


def expected_gradients(module: Any, batch: tuple[Tensor, Tensor], lam: float = LAM) -> tuple[Tensor, ...]:
    """The gradients of loss and penalty, written out."""
    layers = potentials(module, batch[0])
    loss = -layers[-1].log_softmax(1)[torch.arange(len(batch[1])), batch[1]].mean()
    penalty = sum(z.square().mean() for z in layers) / len(layers)
    return torch.autograd.grad(loss + lam * penalty, list(module.parameters()))


@cache
def classifier_of(name: str) -> Any:
    """The class of a LightningModule of the package `name` that keeps the gradients it gets and those it should get."""
    package = importlib.import_module(name)

    class Classifier(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(FEATURES, 8)
            self.second = nn.Linear(8, CLASSES)
            self.gradients: list[list[Tensor]] = []
            self.expected: list[tuple[Tensor, ...]] = []

        def forward(self, features: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(features)))

        def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
            self.batch = batch
            loss = functional.cross_entropy(self(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
            self.log("val_loss", functional.cross_entropy(self(batch[0]), batch[1]))

        def on_after_backward(self) -> None:
            self.gradients.append([parameter.grad.clone() for parameter in self.parameters()])
            with torch.enable_grad():
                self.expected.append(expected_gradients(self, self.batch))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Classifier


def loader(batches: int = 3, seed: int = 0) -> DataLoader[Any]:
    """Batches of random features and labels in float64."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batches * BATCH, FEATURES, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, CLASSES, (batches * BATCH,), generator=generator)
    return DataLoader(TensorDataset(features, labels), batch_size=BATCH)


def quiet_trainer(name: str, *callbacks: Any, **settings: Any) -> Any:
    """A trainer of the package `name` on the CPU in float64 that writes nothing, unless the settings say otherwise."""
    defaults: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "precision": "64-true",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return importlib.import_module(name).Trainer(callbacks=list(callbacks), **{**defaults, **settings})


def check(module: Any, steps: int) -> None:
    """That so many backward passes ran, each with the gradient of the definition."""
    assert len(module.gradients) == len(module.expected) == steps
    for found, expected in zip(module.gradients, module.expected, strict=True):
        torch.testing.assert_close(found, list(expected), rtol=1e-8, atol=1e-12)
