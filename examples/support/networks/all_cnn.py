"""All-CNN-C of Springenberg et al., "Striving for simplicity: the all convolutional net" (arXiv 1412.6806)."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn


class AllCNNC(nn.Module):
    """Nine convolutions, each with ReLU, and the mean over all positions as logits; for 32×32 images.

    The last convolution has a ReLU too, hence its potentials are a hidden layer's and the logits are never negative.
    Weights start from Glorot's normal distribution and there is no batch normalisation, as in the code of the first
    PSP paper.

    Args:
        dropout: What dropout switches off, a fifth of the input and half of what each strided convolution gives:
            single units as in the All-CNN paper, whole channels as in the code of the first PSP paper, or nothing.
    """

    def __init__(self, dropout: Literal["unit", "channel"] | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(96, 96, kernel_size=3, padding=1)
        self.conv3 = nn.Conv2d(96, 96, kernel_size=3, padding=1, stride=2)
        self.conv4 = nn.Conv2d(96, 192, kernel_size=3, padding=1)
        self.conv5 = nn.Conv2d(192, 192, kernel_size=3, padding=1)
        self.conv6 = nn.Conv2d(192, 192, kernel_size=3, padding=1, stride=2)
        self.conv7 = nn.Conv2d(192, 192, kernel_size=3)
        self.conv8 = nn.Conv2d(192, 192, kernel_size=1)
        self.conv9 = nn.Conv2d(192, 10, kernel_size=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        kind = {"unit": nn.Dropout, "channel": nn.Dropout2d, None: nn.Identity}[dropout]
        self.drop_input, self.drop_hidden = kind(0.2), kind(0.5)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits ``[batch, 10]`` of images ``[batch, 3, 32, 32]``."""
        x = F.relu(self.conv1(self.drop_input(images)))
        x = F.relu(self.conv2(x))
        x = self.drop_hidden(F.relu(self.conv3(x)))
        x = F.relu(self.conv4(x))
        x = F.relu(self.conv5(x))
        x = self.drop_hidden(F.relu(self.conv6(x)))
        x = F.relu(self.conv7(x))
        x = F.relu(self.conv8(x))
        x = F.relu(self.conv9(x))
        return self.pool(x).flatten(1)
