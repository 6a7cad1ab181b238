"""Classification with SGD as a plain LightningModule around any network: nothing in it knows of PSP."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn


class Classifier(LightningModule):
    """Cross-entropy, error and SGD.

    Logs ``train_loss`` (the cross-entropy that is trained with), ``val_loss``, ``val_error``, ``test_loss`` and
    ``test_error``; errors are shares of 1, and with several processes all values are of all of them.

    Args:
        network: Computes logits ``[batch, classes]`` of images.
        learning_rate: Learning rate of SGD.
        momentum: Momentum of SGD.
        nesterov: Whether the momentum is Nesterov's.
        weight_decay: Weight decay of SGD, that is ℓ2 regularisation of all parameters.
        milestones: Epochs after which the learning rate is divided by ten.
        label_smoothing: Share of the target that is spread evenly over all classes, in training.
        l1: Factor of the sum of all parameters' absolute values, which is added to the loss.
    """

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float = 0.1,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        milestones: Sequence[int] = (),
        label_smoothing: float = 0.0,
        l1: float = 0.0,
    ) -> None:
        super().__init__()
        self.network = network
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.nesterov = nesterov
        self.weight_decay = weight_decay
        self.milestones = list(milestones)
        self.label_smoothing = label_smoothing
        self.l1 = l1

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of images."""
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy of a training batch, and ℓ1 where it is asked for."""
        images, labels = batch
        loss = F.cross_entropy(self(images), labels, label_smoothing=self.label_smoothing)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(labels), sync_dist=True)
        if self.l1:
            loss = loss + self.l1 * sum(parameter.abs().sum() for parameter in self.parameters())
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and error on the validation set."""
        self._evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and error on the test set."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str) -> None:
        images, labels = batch
        logits = self(images)
        error = (logits.argmax(dim=1) != labels).float().mean()
        values = {f"{stage}_loss": F.cross_entropy(logits, labels), f"{stage}_error": error}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(labels), sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """SGD, with drops of the learning rate where there are milestones."""
        optimizer = torch.optim.SGD(
            self.parameters(),
            lr=self.learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, self.milestones, gamma=0.1)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def evaluate(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Compute ``test_error`` in per cent and ``test_loss``, the mean cross-entropy, over batches of images."""
    network.eval()
    device = next(network.parameters()).device
    wrong, loss, images = 0, 0.0, 0
    with torch.no_grad():
        for inputs, labels in batches:
            inputs, labels = inputs.to(device), labels.to(device)
            logits = network(inputs)
            wrong += (logits.argmax(dim=1) != labels).sum().item()
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            images += len(labels)
    return {"test_error": 100 * wrong / images, "test_loss": loss / images}
