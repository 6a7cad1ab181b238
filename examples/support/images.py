"""MNIST and Fashion-MNIST as Lightning data modules that hold all images in memory.

A set is one tensor of bytes on the device that trains, and a batch is cut out of it by its indices: a loader that
collates image by image would take longer than LeNet-5 does.
"""

from pathlib import Path
from typing import TypeVar

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset
from torchvision import datasets

Files = TypeVar("Files", bound=datasets.VisionDataset)


class ImageSets(LightningDataModule):
    """Training and test images of a set that has no validation part.

    Args:
        mean: What is taken from each channel, where a white pixel is 1.
        deviation: What each channel is then divided by. Both are the constants of the authors' code, so that inputs are
            the same: MNIST's are mean and standard deviation of its training images, Fashion-MNIST's bring black and
            white to ∓1, and CIFAR-10's deviations are the mean of those within an image, less than those of the set.
        batch_size: Number of images in a training batch.
        held_out: Number of training images, drawn once for all trainings, that are kept out to validate on. With 0
            the validation set is the test set, as in the first paper, which reports the test error of each epoch: a
            training may then not be chosen, or stopped, by its validation error.
        train_images: Number of training images to take, the same of each class, drawn once for all trainings; 0 takes
            all. A smaller number takes some of those that a larger one takes. Those held out are of them.
    """

    def __init__(
        self,
        mean: tuple[float, ...],
        deviation: tuple[float, ...],
        batch_size: int,
        held_out: int,
        train_images: int = 0,
    ) -> None:
        super().__init__()
        self.mean = 255 * torch.tensor(mean).view(-1, 1, 1)
        self.deviation = 255 * torch.tensor(deviation).view(-1, 1, 1)
        self.batch_size = batch_size
        self.held_out = held_out
        self.train_images = train_images

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Return all images as bytes ``[images, channels, height, width]`` and their labels ``[images]``."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Read the images, onto the device that trains."""
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        images, labels = (each.to(device) for each in self.load(train=True))
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).to(device)
        if self.train_images:
            order = first_of_each_class(order, labels, self.train_images)
        if not 0 <= self.held_out < len(order):
            raise ValueError(
                f"Expected argument `held_out` to be at least 0 and less than {len(order)}, the number of training"
                f" images, but got {self.held_out}."
            )
        kept = order[self.held_out :].sort().values
        self.train_set = TensorDataset(images[kept], labels[kept])
        self.test_set = TensorDataset(*(each.to(device) for each in self.load(train=False)))
        self.validation_set = self.test_set
        if self.held_out:
            self.validation_set = TensorDataset(images[order[: self.held_out]], labels[order[: self.held_out]])

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Normalise the bytes of a batch by the set's mean and deviation."""
        images, labels = batch
        self.mean, self.deviation = self.mean.to(images.device), self.deviation.to(images.device)
        return images.float().sub_(self.mean).div_(self.deviation), labels

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of the training set."""
        sampler = BatchSampler(RandomSampler(self.train_set), self.batch_size, drop_last=False)
        return DataLoader(self.train_set, sampler=sampler, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        """The held-out images, or the test set where none are held out."""
        return _in_order(self.validation_set)

    def test_dataloader(self) -> DataLoader:
        """The test set."""
        return _in_order(self.test_set)


class MNIST(ImageSets):
    """Handwritten digits: 60,000 images of 28×28 pixels to train on, 10,000 to test.

    Args:
        root: Folder in which torchvision keeps the set.
        download: Whether torchvision may download what is missing.
        batch_size: Number of images in a training batch.
        held_out: Number of training images to validate on; with 0 validation runs on the test set.
    """

    files: type[datasets.MNIST] = datasets.MNIST
    normalisation = (0.1307,), (0.3081,)

    def __init__(self, root: Path, download: bool = False, batch_size: int = 100, held_out: int = 0) -> None:
        super().__init__(*self.normalisation, batch_size, held_out)
        self.root = root
        self.download = download

    def prepare_data(self) -> None:
        """Download what is missing, in one process of a machine."""
        if self.download:
            self.files(self.root, download=True)

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Return all images as bytes ``[images, 1, 28, 28]`` and their labels ``[images]``."""
        files = open_files(self.files, self.root, train)
        return files.data.unsqueeze(1), files.targets


class FashionMNIST(MNIST):
    """Pieces of clothing, else as :class:`MNIST`."""

    files = datasets.FashionMNIST
    normalisation = (0.5,), (0.5,)


def first_of_each_class(order: Tensor, labels: Tensor, number: int) -> Tensor:
    """Take the first images of each class in an order, the same number of each.

    Args:
        order: Indices of images ``[images]``.
        labels: Classes of all images ``[images]``.
        number: How many images to take in all.

    Returns:
        Their indices ``[number]``, in the same order.

    Raises:
        ValueError: If ``number`` is no multiple of the number of classes, or a class has too few images.
    """
    classes, sizes = labels.unique(return_counts=True)
    of_each, smallest = number // len(classes), int(sizes.min())
    if number % len(classes) or not 1 <= of_each <= smallest:
        raise ValueError(
            f"Expected argument `train_images` to be 0 or a multiple of {len(classes)}, the number of classes, up to"
            f" {len(classes) * smallest}, but got {number}."
        )
    is_taken = torch.zeros_like(order, dtype=torch.bool)
    for each in classes:
        is_taken[(labels[order] == each).nonzero().flatten()[:of_each]] = True
    return order[is_taken]


def open_files(kind: type[Files], root: Path, train: bool, remedy: str = "") -> Files:
    """Open torchvision's files of a set.

    Args:
        kind: torchvision's class of the set.
        root: Folder in which torchvision keeps the set.
        train: Whether to open the training images, and not those to test on.
        remedy: What else to do where the files are not there.

    Raises:
        FileNotFoundError: If ``root`` does not hold the set.
    """
    try:
        return kind(root, train=train)
    except RuntimeError as error:
        raise FileNotFoundError(
            f"Expected the folder {root} to hold {kind.__name__} as torchvision stores it, but it is not there or not"
            " whole. Name another folder, or have the set downloaded: `--data.root` and `--data.download true` in"
            f" train.py, `--data` and `--download` in the other scripts.{remedy}"
        ) from error


def _in_order(dataset: TensorDataset) -> DataLoader:
    return DataLoader(dataset, sampler=BatchSampler(SequentialSampler(dataset), 500, drop_last=False), batch_size=None)
