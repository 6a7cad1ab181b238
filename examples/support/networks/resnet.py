"""ResNet-18 and ResNet-32 for images of 32×32 pixels, and a small one for the digits."""

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock


class ResNet18(models.ResNet):
    """torchvision's ResNet-18 with 10 classes, a first convolution of 3×3 and stride 1, and no max-pool.

    Args:
        dropout: Share of the features that dropout switches off before the last layer.
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=10)
        self.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()
        self.avgpool = nn.Sequential(self.avgpool, nn.Dropout(dropout))


class ResNet32(nn.Module):
    """The ResNet of 32 layers that its paper has for CIFAR-10 (He et al., arXiv 1512.03385, section 4.2).

    A convolution and three stages of five blocks with 16, 32 and 64 filters; shortcuts have no parameters.

    Args:
        dropout: Share of the features that dropout switches off before the last layer.
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _make_stage(16, 16, stride=1)
        self.layer2 = _make_stage(16, 32, stride=2)
        self.layer3 = _make_stage(32, 64, stride=2)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(64, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits ``[batch, 10]`` of images ``[batch, 3, 32, 32]``."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.dropout(x.mean(dim=(2, 3))))


class SmallResNet(nn.Module):
    """A convolution and two residual blocks, of 16 and 32 filters, for greyscale images of 8×8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.block1 = BasicBlock(16, 16)
        self.block2 = BasicBlock(16, 32, stride=2, downsample=PaddedShortcut(16))
        self.fc = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits ``[batch, 10]`` of images ``[batch, 1, 8, 8]``."""
        x = F.relu(self.bn1(self.conv1(images)))
        return self.fc(self.block2(self.block1(x)).mean(dim=(2, 3)))


class PaddedShortcut(nn.Module):
    """Every second pixel, and zeros as further channels: a shortcut without parameters.

    Args:
        new_channels: Number of channels to add.
    """

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.new_channels = new_channels

    def forward(self, x: Tensor) -> Tensor:
        """Halve and pad ``x``."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.new_channels))


def _make_stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    shortcut = PaddedShortcut(outputs - inputs) if stride == 2 else None
    first = BasicBlock(inputs, outputs, stride, downsample=shortcut)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(4)))
