"""segmentation_models_pytorch: encoders with in-place sums, decoders, losses that apply the sigmoid."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from tests.libraries.check import Case, Row
from tests.libraries.taps import Layer, into, out, outs

BLOCKS = [f"encoder.layer{i}.{k}" for i in (1, 2, 3, 4) for k in range(2)]
ENCODER: list[str | Layer] = [
    "encoder.bn1",
    *(f"{block}.bn1" for block in BLOCKS),
    *(into(f"{block}.relu", 1) for block in BLOCKS),  # it stands behind the batch norm, and then behind the sum
]


def network(name: str, class_name: str, layers: Iterable[str | Layer], loss: str, size: int = 32, **more: Any) -> Row:
    layers = list(layers)

    def made() -> Case:
        import segmentation_models_pytorch as smp

        net = getattr(smp, class_name)("resnet18", encoder_weights=None, classes=1, **more).double().train()
        images, labels = torch.randn(2, 3, size, size), torch.randint(0, 2, (2, 1, size, size))
        measure = getattr(smp.losses, loss)("binary")
        expected = [one for entry in layers for one in (outs(entry) if isinstance(entry, str) else [entry])]
        return Case(net, lambda n: measure(n(images), labels), expected)

    return Row("segmentation_models_pytorch", name, made)


DEEPLAB = [
    *(f"decoder.aspp.0.convs.{i}.1" for i in range(4)),
    "decoder.aspp.0.convs.4.2",
    "decoder.aspp.0.project.1",
    "decoder.aspp.2",
    "decoder.block1.1",
    "decoder.block2.1",
]

ROWS: list[Row] = [
    network(
        "Unet",
        "Unet",
        [*ENCODER, *(f"decoder.blocks.{i}.conv{k}.1" for i in range(5) for k in (1, 2)), "segmentation_head.0"],
        "DiceLoss",
        decoder_channels=(8, 8, 8, 8, 8),
    ),
    # The output is the upsampled map, which no weights have made after the convolution.
    network(
        "DeepLabV3Plus",
        "DeepLabV3Plus",
        [*ENCODER, *DEEPLAB, out("segmentation_head.1", name="segmentation_head.0")],
        "JaccardLoss",
        64,
        decoder_channels=8,
    ),
    network(
        "Linknet",
        "Linknet",
        [
            *ENCODER,
            *(f"decoder.blocks.{i}.block.{k}.1" for i in range(5) for k in range(3)),
            "segmentation_head.0",
        ],
        "FocalLoss",
    ),
]
