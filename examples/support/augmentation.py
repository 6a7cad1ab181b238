"""Random crops and flips of whole batches, each image with its own."""

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_randomly(images: Tensor, padding: int) -> Tensor:
    """Pad each image with zeros on all sides and cut its old size out of it, at a place drawn for each image.

    Args:
        images: Images ``[batch, channels, height, width]``.
        padding: Width of the padding.

    Returns:
        Images of the same shape.
    """
    batch, _, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    tops, lefts = torch.randint(0, 2 * padding + 1, (2, batch, 1), device=images.device)
    rows = tops + torch.arange(height, device=images.device)
    columns = lefts + torch.arange(width, device=images.device)
    image = torch.arange(batch, device=images.device).view(-1, 1, 1)
    # Indices on both sides of the channels bring these to the end.
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def flip_randomly(images: Tensor) -> Tensor:
    """Mirror each image ``[batch, channels, height, width]`` left to right with probability 1/2."""
    is_flipped = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(is_flipped, images.flip(3), images)
