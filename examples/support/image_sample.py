"""Small samples of MNIST and Fashion-MNIST."""

from pathlib import Path

import torch

from support.data import ThreeSets
from support.images import MNIST


def image_sample(kind: type[MNIST], folder: Path, images: int, validation: int, seed: int) -> ThreeSets:
    """Draw images to train on and to validate on from the training images; the test set is the whole one.

    Args:
        kind: The set.
        folder: Folder in which torchvision keeps it.
        images: Number of images to train on.
        validation: Number of images to validate on.
        seed: Seed of the draw.
    """
    data = kind(folder)
    (images_to_draw_from, labels), (test_images, test_labels) = data.load(train=True), data.load(train=False)
    drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[: images + validation]
    pixels = torch.cat([images_to_draw_from[drawn], test_images]).float()
    order = range(len(pixels))
    parts = order[:images], order[images : len(drawn)], order[len(drawn) :]
    return ThreeSets((pixels - data.mean) / data.deviation, torch.cat([labels[drawn], test_labels]), parts, 100)
