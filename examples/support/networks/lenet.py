"""LeNet-5 and LeNet-300, for greyscale images."""

import torch.nn.functional as F
from torch import Tensor, nn


class LeNet5(nn.Module):
    """20 and 50 filters of 5×5, each with ReLU and 2×2 max-pool, then 500 hidden units.

    Args:
        dropout: Share of the hidden units that dropout switches off.
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, kernel_size=5)
        self.conv2 = nn.Conv2d(20, 50, kernel_size=5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, 10)
        self.dropout = dropout

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits ``[batch, 10]`` of images ``[batch, 1, 28, 28]``."""
        x = F.max_pool2d(F.relu(self.conv1(images)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(F.dropout(x, self.dropout, self.training))


class LeNet300(nn.Module):
    """300 and 100 hidden units.

    Args:
        pixels: Number of pixels of an image.
        dropout: Share of the hidden units of both layers that dropout switches off.
    """

    def __init__(self, pixels: int = 28 * 28, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(pixels, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, 10)
        self.dropout = dropout

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits ``[batch, 10]`` of images ``[batch, 1, height, width]``."""
        x = F.relu(self.fc1(images.flatten(1)))
        x = F.relu(self.fc2(F.dropout(x, self.dropout, self.training)))
        return self.fc3(F.dropout(x, self.dropout, self.training))
