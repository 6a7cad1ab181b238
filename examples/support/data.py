"""The handwritten digits that come with scikit-learn, as a Lightning data module."""

import torch
from lightning.pytorch import LightningDataModule
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, TensorDataset


class Digits(LightningDataModule):
    """1,797 real handwritten digits of 8×8 pixels: 797 to train on, 500 to validate, 500 to test.

    The images are embedded in scikit-learn, so nothing is downloaded. The split keeps the share of
    each digit and depends on ``split_seed`` alone: every training sees the same three sets.

    Args:
        batch_size: Number of images in a training batch.
        split_seed: Seed of the split into the three sets.
    """

    def __init__(self, batch_size: int = 50, split_seed: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # pixels 0 … 16
        labels = torch.tensor(digits.target, dtype=torch.long)

        rest, test = train_test_split(range(len(labels)), test_size=500, stratify=labels, random_state=split_seed)
        train, validation = train_test_split(rest, test_size=500, stratify=labels[rest], random_state=split_seed)
        self.train_set = TensorDataset(images[train], labels[train])
        self.validation_set = TensorDataset(images[validation], labels[validation])
        self.test_set = TensorDataset(images[test], labels[test])

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of the training set."""
        return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """The validation set as one batch."""
        return DataLoader(self.validation_set, batch_size=len(self.validation_set))

    def test_dataloader(self) -> DataLoader:
        """The test set as one batch."""
        return DataLoader(self.test_set, batch_size=len(self.test_set))
