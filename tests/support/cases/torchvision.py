"""Models of torchvision with random weights, some of them narrower, on small images, without dropout."""

from functools import partial

import torch
from torch import nn

from tests.support.cases import REDUCTIONS, Case, classification_batch

CLASSES = 10


def without_chance(network: nn.Module) -> nn.Module:
    """Dropout and dropped paths would make two runs of the same step differ."""
    for module in network.modules():
        if hasattr(module, "p"):
            module.p = 0.0
    return network


def model(name: str, **settings) -> nn.Module:
    from torchvision import models

    return without_chance(models.get_model(name, weights=None, num_classes=CLASSES, **settings))


def vgg11_bn() -> nn.Module:
    """An eighth as wide."""
    from torchvision.models import vgg

    widths = [width if width == "M" else width // 8 for width in vgg.cfgs["A"]]
    with torch.device("meta"):  # its classifier has no argument for widths
        network = vgg.VGG(nn.Identity(), init_weights=False)
    network.features = vgg.make_layers(widths, batch_norm=True)
    features = widths[-2] * 7 * 7
    for index, sizes in ((0, (features, 32)), (3, (32, 32)), (6, (32, CLASSES))):
        network.classifier[index] = nn.Linear(*sizes)
    return without_chance(network)


def convnext_tiny() -> nn.Module:
    """A quarter as wide."""
    from torchvision.models import convnext

    stages = [(24, 48, 3), (48, 96, 3), (96, 192, 9), (192, None, 3)]
    return without_chance(convnext.ConvNeXt([convnext.CNBlockConfig(*stage) for stage in stages], num_classes=CLASSES))


def swin_t() -> nn.Module:
    """A quarter as wide."""
    from torchvision.models import SwinTransformer

    network = SwinTransformer([4, 4], 24, [2, 2, 6, 2], [3, 6, 12, 24], [7, 7], num_classes=CLASSES)
    return without_chance(network)


def small_vision_transformer() -> nn.Module:
    from torchvision.models import VisionTransformer

    network = VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
        num_classes=CLASSES,
    )
    # its head starts at zero: nothing behind it would get a gradient from the loss
    nn.init.normal_(network.heads.head.weight)
    return without_chance(network)


def resnet18_names() -> tuple[str, ...]:
    blocks = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
    return ("bn1", *(f"{b}.{z}" for b in blocks for z in ("bn1", "relu")), "fc")


VGG11_BN_NAMES = (
    *(f"features.{i}" for i in (1, 5, 9, 12, 16, 19, 23, 26)),
    *(f"classifier.{i}" for i in (0, 3, 6)),
)


def _case(name: str, size: int = 64, batch: int = 3, network=None, all_reductions=False, **known) -> Case:
    return Case(
        name,
        network or partial(model, name),
        partial(classification_batch, batch, 3, size, size, classes=CLASSES),
        reductions=REDUCTIONS if all_reductions else ("mean",),
        needs_torchvision=True,
        **known,
    )


TORCHVISION_CASES = [
    _case("resnet18", all_reductions=True, names=resnet18_names()),
    _case("mobilenet_v2", all_reductions=True, layers=36),
    _case("mobilenet_v3_small"),
    _case("densenet121", layers=122),
    _case("vgg11_bn", 32, network=vgg11_bn, names=VGG11_BN_NAMES),
    _case("convnext_tiny", network=convnext_tiny, layers=19),
    _case("shufflenet_v2_x0_5"),
    _case("vit_small", 32, all_reductions=True, network=small_vision_transformer, layers=3),
    _case(
        "googlenet",
        network=partial(model, "googlenet", aux_logits=False, init_weights=False),
        layers=58,
    ),
    _case("swin_t", network=swin_t, layers=13),
    _case("efficientnet_b0"),
    _case("squeezenet1_1"),
    _case("regnet_y_400mf"),
]
