"""timm: batch norms with the activation inside, squeeze-excitation, gates, activations written out, in place too."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F

from tests.libraries.check import Case, Row
from tests.libraries.taps import Layer, chunk, expand, into, out, outs

CLASSES = 4


def network(
    name: str,
    model: str,
    layers: Iterable[str | Layer],
    size: int = 32,
    settings: Callable[[], dict[str, Any]] = dict,
) -> Row:
    """A row with cross-entropy in the step."""
    layers = list(layers)

    def made() -> Case:
        import timm

        create = timm.create_model if model in timm.list_models() else getattr(timm.models, model)
        given = {"model_name": model} if create is timm.create_model else {}
        net = create(**given, num_classes=CLASSES, **settings()).double().train()
        images, labels = torch.randn(4, 3, size, size), torch.randint(0, CLASSES, (4,))
        expected = [one for entry in layers for one in (outs(entry) if isinstance(entry, str) else [entry])]
        return Case(net, lambda n: F.cross_entropy(n(images), labels), expected)

    return Row("timm", name, made)


def norms(*paths: str) -> list[Layer]:
    """`BatchNormAct2d`: a batch norm whose own code calls its activation with what `F.batch_norm` gave."""
    return [into(f"{path}.act", name=path) for pattern in paths for path in expand(pattern)]


def sums(*paths: str) -> list[Layer]:
    """Activations of sums."""
    return [into(path) for pattern in paths for path in expand(pattern)]


def squeezed(*paths: str) -> list[str]:
    """Squeeze-excitation: its reduction, and the gate's input."""
    return [f"{path}.{part}" for path in paths for part in ("conv_reduce", "conv_expand")]


def attention(*paths: str) -> list[str]:
    """The same with other names."""
    return [f"{path}.{part}" for path in paths for part in ("fc1", "fc2")]


def vit(**more: Any) -> dict[str, Any]:
    return {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, **more}


def act(name: str) -> Callable[[], dict[str, Any]]:
    """timm's own class of that name, instead of PyTorch's."""

    def made() -> dict[str, Any]:
        from timm.layers import activations

        return vit(act_layer=getattr(activations, name))

    return made


def in_place(name: str) -> Callable[[], dict[str, Any]]:
    def made() -> dict[str, Any]:
        from timm.layers import activations

        return {"act_layer": getattr(activations, name)}

    return made


def gated(last: bool) -> Callable[[], dict[str, Any]]:
    def made() -> dict[str, Any]:
        from functools import partial

        from timm.layers import GluMlp
        from torch import nn

        return vit(mlp_layer=partial(GluMlp, act_layer=nn.SiLU, gate_last=last))

    return made


MIXER = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "num_blocks": 2}
EFFICIENTNET = [
    *norms("bn1", "blocks.{5}.0.bn1", "blocks.3.0.bn2", "blocks.4.0.bn2", "bn2"),
    *squeezed("blocks.3.0.se", "blocks.4.0.se"),
    "classifier",
]
STAGES = {"test_convnext": (1, 2, 4, 2), "test_convnext2": (1, 1, 1, 1)}
BYOB = [
    ("0.0", ["conv1_kxk"], "attn"),
    ("1.0", ["conv1_1x1"], "attn_last"),
    ("2.0", ["conv1_kxk"], "attn_last"),
    ("3.0", ["conv1_1x1", "conv2_kxk"], "attn"),
]
VOV = ["conv_mid.{3}", "conv_concat"]


def nfnet() -> list[str | Layer]:
    """Without normalisation; a stage's first activation reads what the stage before gave, a sum."""
    first = ["stem.conv4", *(f"stages.{i}.0" for i in range(3))]
    inner = [f"stages.{i}.0.{conv}" for i in range(4) for conv in ("conv1", "conv2", "conv2b")]
    gates = attention(*(f"stages.{i}.0.attn_last" for i in range(4)))
    return [*(f"stem.conv{i}" for i in (1, 2, 3)), *first, *inner, *gates, "final_conv", "head.fc"]


def mambaout() -> list[str | Layer]:
    """`silu(gate) * …`: the gate is the first part of a projection."""
    blocks = [f"stages.{i}.blocks.{k}" for i, depth in enumerate((1, 1, 3, 1)) for k in range(depth)]
    return ["stem.conv1", *(Layer(f"{b}.fc1", into(f"{b}.act").taps) for b in blocks), "head.pre_logits.fc", "head.fc"]


ROWS: list[Row] = [
    network("vit", "vit_tiny_patch16_224", ["blocks.{2}.mlp.fc1", "head"], settings=vit),
    *[
        network(f"vit, timm's {name}", "vit_tiny_patch16_224", ["blocks.{2}.mlp.fc1", "head"], settings=act(name))
        for name in ("Swish", "Mish", "HardSwish", "HardSigmoid", "HardMish")
    ],
    *[
        network(
            f"vit, gate {'last' if last else 'first'}",
            "vit_tiny_patch16_224",
            [*(out(path, chunk(int(last))) for path in expand("blocks.{2}.mlp.fc1")), "head"],
            settings=gated(last),
        )
        for last in (True, False)
    ],
    network(
        "mlp-mixer",
        "MlpMixer",
        ["blocks.{2}.mlp_tokens.fc1", "blocks.{2}.mlp_channels.fc1", "head"],
        settings=lambda: MIXER,
    ),
    *[
        network(
            name.removeprefix("test_"),
            name,
            [
                *(f"stages.{i}.blocks.{k}.mlp.fc1" for i, depth in enumerate(depths) for k in range(depth)),
                "head.fc",
            ],
        )
        for name, depths in STAGES.items()
    ],
    network(
        "resnet10t",
        "resnet10t",
        [
            "conv1.1",
            "conv1.4",
            "bn1",
            *(f"layer{i}.0.bn1" for i in (1, 2, 3, 4)),
            *sums(*(f"layer{i}.0.act2" for i in (1, 2, 3, 4))),
            "fc",
        ],
        64,
    ),
    network("efficientnet", "test_efficientnet", EFFICIENTNET, 64),
    *[
        network(f"efficientnet, timm's {name} in place", "test_efficientnet", EFFICIENTNET, 64, in_place(name))
        for name in ("Swish", "HardSwish")
    ],
    network(
        "mobilenetv3",
        "mobilenetv3_small_050",
        [
            *norms("bn1", "blocks.0.0.bn1", "blocks.5.0.bn1"),
            *norms(*(f"blocks.{b}.bn{i}" for b in ("1.0", "1.1", "2.0", "2.1", "2.2") for i in (1, 2))),
            *norms(*(f"blocks.{b}.bn{i}" for b in ("3.0", "3.1", "4.0", "4.1", "4.2") for i in (1, 2))),
            *squeezed(*(f"blocks.{b}.se" for b in ("0.0", "2.0", "2.1", "2.2", "3.0", "3.1", "4.0", "4.1", "4.2"))),
            "conv_head",
            "classifier",
        ],
        64,
    ),
    network(
        "vovnet",
        "ese_vovnet19b_slim_dw",
        [
            *norms("stem.{3}.bn"),
            *norms(*(f"stages.{i}.blocks.0.{part}.bn" for i in range(4) for part in VOV)),
            *norms(*(f"stages.{i}.blocks.0.conv_reduction.bn" for i in (1, 2, 3))),
            "stages.{4}.blocks.0.attn.fc",
            "head.fc",
        ],
        64,
    ),
    network(
        "byobnet",
        "test_byobnet",
        [
            *norms("stem.bn", *(f"stages.{s}.{conv}.bn" for s, convs, _ in BYOB for conv in convs)),
            *attention(*(f"stages.{s}.{part}" for s, _, part in BYOB)),
            *sums(*(f"stages.{s}.act" for s, _, _ in BYOB)),
            "head.fc",
        ],
        64,
    ),
    network("nfnet", "test_nfnet", nfnet(), 64),
    network("mambaout", "test_mambaout", mambaout(), 64),
]
