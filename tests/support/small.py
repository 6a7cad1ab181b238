"""A small classifier and its data, for tests of what the callback does around a training."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as module_hooks
from torch.utils.data import DataLoader, TensorDataset

FEATURES, CLASSES, BATCH = 6, 3, 4


class Classifier(LightningModule):
    """Two hidden layers, one of them with an in-place activation; keeps the gradients of every backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 8)
        self.second = nn.Linear(8, 8)
        self.relu = nn.ReLU(inplace=True)
        self.third = nn.Linear(8, CLASSES)
        self.gradients: list[list[Tensor]] = []
        self.losses: list[float] = []

    def forward(self, features: Tensor) -> Tensor:
        return self.third(self.relu(self.second(functional.silu(self.first(features)))))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor | None:
        features, labels = batch
        loss = functional.cross_entropy(self(features), labels)
        self.log("loss", loss)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        features, labels = batch
        self.log("val_loss", functional.cross_entropy(self(features), labels))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        self.validation_step(batch, batch_index)

    def on_after_backward(self) -> None:
        self.gradients.append([parameter.grad.clone() for parameter in self.parameters()])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


LAYERS = ["first", "second", "third"]


def loader(batches: int = 3, seed: int = 0) -> DataLoader[Any]:
    """Batches of random features and labels in float64."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batches * BATCH, FEATURES, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, CLASSES, (batches * BATCH,), generator=generator)
    return DataLoader(TensorDataset(features, labels), batch_size=BATCH)


def quiet_trainer(*callbacks: Callback, **settings: Any) -> Trainer:
    """A trainer on the CPU in float64 that writes nothing, unless the settings say otherwise."""
    defaults: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "precision": "64-true",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(callbacks=list(callbacks), **{**defaults, **settings})


def traces(trainer: Trainer, module: nn.Module) -> dict[str, Any]:
    """Everything a callback could leave behind on a model, a trainer's strategy, or in torch."""
    return {
        "hooks": [
            len(getattr(part, kind))
            for part in module.modules()
            for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        ],
        "attributes": [sorted(name for name in part.__dict__ if not name.startswith("_")) for part in module.modules()],
        "modes": [part.training for part in module.modules()],
        "parameter hooks": [len(parameter._backward_hooks or ()) for parameter in module.parameters()],
        "global hooks": [
            len(getattr(module_hooks, kind))
            for kind in dir(module_hooks)
            if kind.startswith("_global_") and "hooks" in kind
        ],
        "function modes": torch._C._len_torch_function_stack(),
        "strategy": sorted(name for name in trainer.strategy.__dict__ if name.endswith("_step")),
    }
