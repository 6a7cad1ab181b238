"""A case's network under Lightning: the gradients that its optimiser gets."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader


class Training(LightningModule):
    """Trains a network with a case's loss and keeps the gradients of each optimiser step."""

    def __init__(self, network: nn.Module, loss: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.gradients: list[dict[str, Tensor]] = []

    def training_step(self, batch: Any) -> Tensor:
        return self.loss(self.network, batch)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.gradients.append(
            {
                name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
                for name, p in self.network.named_parameters()
                if p.requires_grad
            }
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [p for p in self.network.parameters() if p.requires_grad]
        return torch.optim.SGD(trained, lr=0.1)


def fit(
    network: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: list[Any],
    callback: Callback,
    **settings: Any,
) -> tuple[Training, Trainer]:
    """One epoch on the CPU, quietly, in float64 unless the settings say otherwise."""
    if "plugins" not in settings:
        settings.setdefault("precision", "64-true")
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    module = Training(network, loss)
    # the list is the data set and its items are whole batches
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return module, trainer
