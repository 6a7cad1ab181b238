"""Models of torchvision with random weights, on small images, without dropout."""

from functools import partial

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
    network = model("vgg11_bn")
    # the classifier as it is takes 1 GB in float64
    features = network.classifier[0].in_features
    for index, sizes in ((0, (features, 32)), (3, (32, 32)), (6, (32, CLASSES))):
        network.classifier[index] = nn.Linear(*sizes)
    return network


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
    _case("convnext_tiny", layers=19),
    _case("shufflenet_v2_x0_5"),
    _case("vit_small", 32, all_reductions=True, network=small_vision_transformer, layers=3),
    _case(
        "googlenet",
        network=partial(model, "googlenet", aux_logits=False, init_weights=False),
        layers=58,
    ),
    _case("swin_t", layers=13),
    _case("efficientnet_b0"),
    _case("squeezenet1_1"),
    _case("regnet_y_400mf"),
]
