"""MONAI: parametric ReLUs behind norms without weights, sums, attention gates, losses that apply the softmax."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.libraries.check import Case, Row
from tests.libraries.taps import Layer, expand, into, out, outs

CLASSES = 3


def network(
    name: str,
    class_name: str,
    layers: Iterable[str | Layer],
    loss: Callable[[], Callable[[Tensor, Tensor], Tensor]],
    size: int = 16,
    maps: bool = True,
    **settings: Any,
) -> Row:
    """A row for images with a map of classes, or a class each."""
    layers = list(layers)

    def made() -> Case:
        from monai.networks import nets

        net = getattr(nets, class_name)(spatial_dims=2, **settings).double().train()
        images = torch.randn(2, 1, size, size)
        labels = torch.randint(0, CLASSES, (2, 1, size, size) if maps else (2,))
        measure = loss()
        expected = [one for entry in layers for one in (outs(entry) if isinstance(entry, str) else [entry])]
        return Case(net, lambda n: measure(n(images), labels), expected)

    return Row("monai", name, made)


def dice() -> nn.Module:
    from monai.losses import DiceLoss

    return DiceLoss(to_onehot_y=True, softmax=True)


def dice_and_entropy() -> nn.Module:
    from monai.losses import DiceCELoss

    return DiceCELoss(to_onehot_y=True, softmax=True)


def focal() -> nn.Module:
    from monai.losses import FocalLoss

    return FocalLoss(to_onehot_y=True)


def entropy() -> Callable[[Tensor, Tensor], Tensor]:
    return F.cross_entropy


def unnamed(*activations: str) -> list[Layer]:
    """What enters them is an instance norm's result, which has no weights: named after it or after the convolution."""
    return [Layer(path, into(path).taps, named=False) for path in activations]


def segresnet(*blocks: str) -> list[str]:
    return [f"{block}.{norm}" for block in blocks for norm in ("norm1", "norm2")]


def vnet() -> list[str | Layer]:
    down = {"down_tr32": 1, "down_tr64": 2, "down_tr128": 3, "down_tr256": 2}
    up = {"up_tr256": 2, "up_tr128": 2, "up_tr64": 1, "up_tr32": 1}
    convolutions = [f"{part}.ops.{i}.conv_block.adn.N" for part, depth in {**down, **up}.items() for i in range(depth)]
    return [
        into("in_tr.act_function"),
        *(f"{part}.bn1" for part in [*down, *up]),
        *convolutions,
        *(into(f"{part}.act_function2") for part in [*down, *up]),
        "out_tr.conv_block.adn.N",
        "out_tr.conv2",
    ]


UNET = {"in_channels": 1, "out_channels": CLASSES, "channels": (8, 12), "strides": (2,)}
DENSE_LAYERS = [f"features.denseblock{i}.denselayer1.layers.norm{k}" for i in (1, 2) for k in (1, 2)]
DENSENET = ["features.norm0", *DENSE_LAYERS, "features.transition1.norm", "features.norm5", "class_layers.out"]
ATTENTION = [
    *expand("model.0.conv.{2}.adn.N"),
    *expand("model.1.submodule.conv.{2}.adn.N"),
    "model.1.upconv.up.adn.N",
    into("model.1.attention.relu"),
    "model.1.attention.psi.1",
    *unnamed("model.1.merge.adn.A"),
    "model.2.conv",
]

ROWS: list[Row] = [
    network(
        "UNet",
        "UNet",
        [*unnamed("model.0.adn.A", "model.1.submodule.adn.A"), "model.2.conv"],
        dice_and_entropy,
        **UNET,
    ),
    network(
        "UNet with residual units",
        "UNet",
        [
            *unnamed("model.0.conv.unit0.adn.A", "model.1.submodule.conv.unit0.adn.A", "model.2.0.adn.A"),
            out("model.2.1"),
        ],
        dice,
        **UNET,
        num_res_units=1,
    ),
    network(
        "UNet with batch norms",
        "UNet",
        ["model.0.adn.N", "model.1.submodule.adn.N", "model.2.conv"],
        focal,
        **UNET,
        norm="batch",
    ),
    network(
        "SegResNet",
        "SegResNet",
        [*segresnet("down_layers.0.1", "down_layers.1.1", "up_layers.0.0"), "conv_final.0", "conv_final.2.conv"],
        dice,
        in_channels=1,
        out_channels=CLASSES,
        init_filters=8,
        blocks_down=(1, 1),
        blocks_up=(1,),
    ),
    network("VNet", "VNet", vnet(), dice, 32, in_channels=1, out_channels=CLASSES),
    network(
        "AttentionUnet",
        "AttentionUnet",
        ATTENTION,
        dice_and_entropy,
        in_channels=1,
        out_channels=CLASSES,
        channels=(4, 8),
        strides=(2,),
    ),
    network(
        "DenseNet",
        "DenseNet",
        DENSENET,
        entropy,
        32,
        maps=False,
        in_channels=1,
        out_channels=CLASSES,
        init_features=8,
        growth_rate=4,
        block_config=(1, 1),
    ),
]
