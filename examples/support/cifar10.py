"""CIFAR-10 as a Lightning data module, from torchvision's files or from an archive of JPEGs."""

import io
import zipfile
import zlib
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets
from tqdm import tqdm

from support.augmentation import crop_randomly, flip_randomly
from support.images import ImageSets, open_files


class CIFAR10(ImageSets):
    """Photographs of ten classes: 50,000 images of 32×32 pixels to train on, 10,000 to test.

    Training images are cropped to 32 pixels after padding by 4, and flipped, at random.

    Args:
        root: Folder in which torchvision keeps the set.
        download: Whether torchvision may download what is missing.
        batch_size: Number of images in a training batch.
        held_out: Number of training images to validate on; with 0 validation runs on the test set.
        jpeg: Whether to read ``CIFAR10-jpeg/train.zip`` and ``test.zip`` in ``root`` instead, which hold one folder of
            JPEGs a class. JPEG loses a little: compare errors with each other on it, not with published ones.
        cache: Folder in which the decoded JPEGs are kept.
        train_images: Number of training images to take, a multiple of 10, the same of each class, drawn once for all
            trainings; 0 takes all. Those held out are of them; the test set stays whole.
    """

    def __init__(
        self,
        root: Path,
        download: bool = False,
        batch_size: int = 128,
        held_out: int = 0,
        jpeg: bool = False,
        cache: Path = Path("~/.cache/lightning_psp"),
        train_images: int = 0,
    ) -> None:
        super().__init__((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), batch_size, held_out, train_images)
        self.root = root
        self.download = download
        self.jpeg = jpeg
        self.cache = Path(cache)

    def prepare_data(self) -> None:
        """Download or decode what is missing, in one process of a machine."""
        if self.jpeg:
            for train in (True, False):
                self.load(train)
        elif self.download:
            datasets.CIFAR10(self.root, download=True)

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Return all images as bytes ``[images, 3, 32, 32]`` and their labels ``[images]``."""
        if self.jpeg:
            archive = Path(self.root) / "CIFAR10-jpeg" / ("train.zip" if train else "test.zip")
            return decode_once(archive, self.cache.expanduser())
        remedy = " JPEGs in its folder CIFAR10-jpeg are read with `--data.jpeg true`, or `--jpeg`."
        files = open_files(datasets.CIFAR10, self.root, train, remedy)
        return torch.from_numpy(files.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(files.targets)

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Crop and flip in training, and normalise the bytes of a batch by the set's mean and deviation."""
        images, labels = batch
        if self.trainer is not None and self.trainer.training:
            images = flip_randomly(crop_randomly(images, padding=4))
        return super().on_after_batch_transfer((images, labels), dataloader_idx)


def decode_once(archive: Path, cache: Path) -> tuple[Tensor, Tensor]:
    """Decode a ZIP archive of images, one folder a class, or read what was decoded before.

    Args:
        archive: The archive; its images have one size and three colours.
        cache: Folder for the decoded images.

    Returns:
        Images as bytes ``[images, 3, height, width]``, ordered by class and name, and their labels ``[images]``:
        0 for the class that comes first in the alphabet.

    Raises:
        FileNotFoundError: If there is no such archive.
    """
    if not archive.is_file():
        raise FileNotFoundError(
            f"Expected the archive {archive} but it is not there. Name the folder that holds {archive.parent.name}, by"
            " `--data.root` in train.py and by `--data` in the other scripts, or have torchvision's files read."
        )
    with zipfile.ZipFile(archive) as files:
        members = sorted((each for each in files.infolist() if not each.is_dir()), key=lambda each: each.filename)
        contents = zlib.crc32(",".join(f"{each.filename} {each.CRC}" for each in members).encode())
        decoded = cache / f"{archive.parent.name}-{archive.stem}-{contents:08x}.pt"
        if not decoded.exists():
            progress = tqdm(members, desc=f"Decoding {archive.name}", unit="image", leave=False)
            images = [np.asarray(Image.open(io.BytesIO(files.read(each))).convert("RGB")) for each in progress]
            classes = sorted({Path(each.filename).parent for each in members})
            labels = [classes.index(Path(each.filename).parent) for each in members]
            stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
            cache.mkdir(parents=True, exist_ok=True)
            # Several processes may decode at once, and the last to end stands.
            unfinished = decoded.with_suffix(f".{uuid4().hex}.part")
            torch.save((stacked, torch.tensor(labels)), unfinished)
            unfinished.replace(decoded)
    images, labels = torch.load(decoded)
    return images, labels
