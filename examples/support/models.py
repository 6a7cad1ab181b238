"""A LeNet-style network as a plain LightningModule: nothing in it knows of PSP."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn


class DigitsLeNet(LightningModule):
    """Two convolutions and two linear layers for 8×8 images of the ten digits.

    Args:
        learning_rate: Learning rate of SGD, constant and without momentum.
        weight_decay: Weight decay of SGD, that is ℓ2 regularisation of all parameters.
    """

    def __init__(self, learning_rate: float = 0.1, weight_decay: float = 0.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.conv1 = nn.Conv2d(1, 16, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=3, padding=1)
        self.fc1 = nn.Linear(32 * 2 * 2, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits ``[batch, 10]`` of images ``[batch, 1, 8, 8]``."""
        x = F.max_pool2d(F.relu(self.conv1(images)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy of a training batch."""
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("loss", loss)
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
        self.log_dict({f"{stage}_loss": F.cross_entropy(logits, labels), f"{stage}_error": error})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD, as in the first paper."""
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
