"""Data that comes with scikit-learn, as Lightning data modules: nothing is downloaded."""

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningDataModule
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset


class ThreeSets(LightningDataModule):
    """Samples in memory, in three sets: to train on, to validate, to test.

    Args:
        inputs: The samples ``[samples, …]``.
        labels: Their classes ``[samples]``.
        parts: The numbers of the samples in each of the three sets.
        batch_size: Number of samples in a training batch.
    """

    def __init__(self, inputs: Tensor, labels: Tensor, parts: Sequence[Sequence[int]], batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.train_set, self.validation_set, self.test_set = (
            TensorDataset(inputs[part], labels[part]) for part in parts
        )

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of the training set."""
        return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """The validation set in order."""
        return DataLoader(self.validation_set, batch_size=500)

    def test_dataloader(self) -> DataLoader:
        """The test set in order."""
        return DataLoader(self.test_set, batch_size=500)


class Digits(ThreeSets):
    """1,797 real handwritten digits of 8×8 pixels: 797 to train on, 500 to validate, 500 to test.

    The split keeps the share of each digit and depends on ``split_seed`` alone: every training sees the same three
    sets.

    Args:
        batch_size: Number of images in a training batch.
        split_seed: Seed of the split into the three sets.
    """

    def __init__(self, batch_size: int = 50, split_seed: int = 0) -> None:
        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # pixels 0 … 16
        labels = torch.tensor(digits.target, dtype=torch.long)
        super().__init__(images, labels, split_evenly(labels, 500, split_seed), batch_size)


class BreastCancer(ThreeSets):
    """30 measurements of the cell nuclei of 569 tumours, benign or malignant: 269 to train on, 150 each for the others.

    Each measurement has mean 0 and deviation 1 over the training set.

    Args:
        batch_size: Number of tumours in a training batch.
        split_seed: Seed of the split into the three sets.
    """

    def __init__(self, batch_size: int = 50, split_seed: int = 0) -> None:
        tumours = load_breast_cancer()
        measurements = torch.tensor(tumours.data, dtype=torch.float32)
        labels = torch.tensor(tumours.target, dtype=torch.long)
        parts = split_evenly(labels, 150, split_seed)
        to_train_on = measurements[parts[0]]
        measurements = (measurements - to_train_on.mean(dim=0)) / to_train_on.std(dim=0)
        super().__init__(measurements, labels, parts, batch_size)


def split_evenly(labels: Tensor, size: int, seed: int) -> tuple[list[int], list[int], list[int]]:
    """Draw a validation and a test set of ``size`` samples each, in which each class has its share; the rest trains."""
    rest, test = train_test_split(range(len(labels)), test_size=size, stratify=labels, random_state=seed)
    train, validation = train_test_split(rest, test_size=size, stratify=labels[rest], random_state=seed)
    return train, validation, test
