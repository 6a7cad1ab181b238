"""MobileNetV2 for images of 32×32 pixels."""

from torchvision import models

# Expansion, channels, blocks and stride of each stage: the original's, with stride 1 for 2 in the second.
STAGES = [
    [1, 16, 1, 1],
    [6, 24, 2, 1],
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
]


class MobileNetV2(models.MobileNetV2):
    """torchvision's MobileNetV2 with 10 classes, which halves images three times instead of five.

    The first convolution and the second stage have stride 1, as in the code of the first PSP paper. Activations are
    the original's ReLU6; that code has ReLU, and shortcuts also where a block changes the number of channels.

    Args:
        dropout: Share of the features that dropout switches off before the last layer.
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(num_classes=10, inverted_residual_setting=STAGES, dropout=dropout)
        self.features[0][0].stride = (1, 1)
