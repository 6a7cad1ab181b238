"""Small classification tasks of familiar kinds, on data that comes with scikit-learn."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from support.classifier import Classifier
from support.data import BreastCancer, Digits


def perceptron(features: int, classes: int, dropout: float) -> nn.Module:
    """Two hidden layers of 64 units, with dropout behind each."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(features, 64),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(64, classes),
    )


def convolutions(dropout: float, *, batch_norm: bool) -> nn.Module:
    """Two convolutions and two linear layers, with dropout before each of the latter."""
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1),
        nn.BatchNorm2d(16) if batch_norm else nn.Identity(),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.BatchNorm2d(32) if batch_norm else nn.Identity(),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(64, 10),
    )


class RowReader(nn.Module):
    """An LSTM that reads an 8×8 image row by row, with dropout on its last state.

    Args:
        dropout: Share of the last state's entries that are set to 0 in training.
    """

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 64, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits ``[batch, 10]`` of images ``[batch, 1, 8, 8]``."""
        states, _ = self.lstm(images.squeeze(1))
        return self.head(self.dropout(states[:, -1]))


class RowTransformer(nn.Module):
    """A transformer encoder of two blocks whose tokens are the rows of an 8×8 image.

    Args:
        dropout: Dropout of the blocks: attention, hidden layers and residual branches.
    """

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, 32)
        self.places = nn.Parameter(0.02 * torch.randn(8, 32))
        block = nn.TransformerEncoderLayer(32, 4, 64, dropout=dropout, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(block, 2)
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits ``[batch, 10]`` of images ``[batch, 1, 8, 8]``."""
        tokens = self.embedding(images.squeeze(1)) + self.places
        return self.head(self.encoder(tokens).mean(dim=1))


class AdamWClassifier(Classifier):
    """The classifier with AdamW at a learning rate of 0.003."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, whose weight decay is apart from the gradient."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=self.weight_decay)


def with_sgd(network: nn.Module, weight_decay: float) -> Classifier:
    """Train a network by SGD with momentum."""
    return Classifier(network, learning_rate=0.02, momentum=0.9, weight_decay=weight_decay)


def with_adamw(network: nn.Module, weight_decay: float) -> Classifier:
    """Train a network by AdamW."""
    return AdamWClassifier(network, weight_decay=weight_decay)


@dataclass(frozen=True)
class Task:
    """Data, a network with dropout, the way it is trained, and the weight decays that are tried."""

    title: str
    classes: int
    data: Callable[[int], LightningDataModule]
    network: Callable[[float], nn.Module]
    module: Callable[[nn.Module, float], Classifier]
    weight_decays: tuple[float, ...]


def digits(split_seed: int) -> Digits:
    """The digits, split by a seed."""
    return Digits(split_seed=split_seed)


def breast_cancer(split_seed: int) -> BreastCancer:
    """The tumours, split by a seed."""
    return BreastCancer(split_seed=split_seed)


SGD_DECAYS = (3e-4, 1e-3, 3e-3)
ADAMW_DECAYS = (0.01, 0.1, 1.0)
TASKS = {
    "table_mlp": Task(
        "MLP, breast cancer", 2, breast_cancer, lambda dropout: perceptron(30, 2, dropout), with_sgd, SGD_DECAYS
    ),
    "digits_mlp": Task("MLP, digits", 10, digits, lambda dropout: perceptron(64, 10, dropout), with_sgd, SGD_DECAYS),
    "digits_cnn": Task(
        "CNN, digits", 10, digits, lambda dropout: convolutions(dropout, batch_norm=False), with_sgd, SGD_DECAYS
    ),
    "digits_cnn_bn": Task(
        "CNN with batch norm, digits",
        10,
        digits,
        lambda dropout: convolutions(dropout, batch_norm=True),
        with_sgd,
        SGD_DECAYS,
    ),
    "digits_lstm": Task("LSTM over rows, digits", 10, digits, RowReader, with_adamw, ADAMW_DECAYS),
    "digits_transformer": Task("transformer over rows, digits", 10, digits, RowTransformer, with_adamw, ADAMW_DECAYS),
}
