"""open_clip: an image and a text tower with the library's losses of pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.libraries.check import Case, Row
from tests.libraries.taps import Layer, Tap, outs

PAIRS, SIZE, VOCABULARY = 4, 16, 40
TEXT = {"context_length": 8, "vocab_size": VOCABULARY, "width": 16, "heads": 2, "layers": 1}
IMAGE = {"layers": 1, "width": 16, "head_width": 8, "patch_size": 8, "image_size": SIZE}


class Trained(nn.Module):
    """The towers, and the library's loss of what they give."""

    def __init__(self, loss: str, class_name: str, bias: float | None, **image: Any) -> None:
        super().__init__()
        from open_clip import loss as losses
        from open_clip import model as models

        self.clip = getattr(models, class_name)(8, {**IMAGE, **image}, TEXT, init_logit_bias=bias)
        self.loss = getattr(losses, loss)()


def pairs(
    name: str,
    loss: str,
    layers: list[Layer],
    class_name: str = "CLIP",
    bias: float | None = None,
    finish: Callable[[Any], None] = lambda network: None,
    **image: Any,
) -> Row:
    def made() -> Case:
        network = Trained(loss, class_name, bias, **image)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.2)
        finish(network.clip)
        images, texts = torch.randn(PAIRS, 3, SIZE, SIZE), torch.randint(1, VOCABULARY, (PAIRS, 8))

        def step(net: Any) -> Tensor:
            return net.loss(*net.clip(images, texts))

        return Case(network.double().train(), step, layers)

    return Row("open_clip_torch", name, made)


def similarities(function: str, turn: int = 0, of: str = "images") -> Layer:
    return Layer(f"similarities of {of}", (Tap("loss", "call", None, function, turn),), named=False)


IMAGES, TEXTS = (
    "clip.visual.transformer.resblocks.0.mlp.c_fc",
    "clip.transformer.resblocks.0.mlp.c_fc",
)
# Similarities of images with texts and of texts with images are computed apart.
BOTH = [*outs(IMAGES, TEXTS), similarities("cross_entropy"), similarities("cross_entropy", 1, "texts")]

ROWS: list[Row] = [
    pairs("CLIP", "ClipLoss", BOTH),
    pairs("CLIP, checkpoints", "ClipLoss", BOTH, finish=lambda network: network.set_grad_checkpointing(True)),
    pairs("CLIP, scaled layers", "ClipLoss", BOTH, ls_init_value=0.1),
    pairs("CLIP, pooled by attention", "ClipLoss", BOTH, attentional_pool=True, attn_pooler_heads=2),
    pairs("SigLIP", "SigLipLoss", [*outs(IMAGES, TEXTS), similarities("logsigmoid")], bias=-2.0),
    pairs(
        "SigLIP, its own text tower",
        "SigLipLoss",
        [*outs(IMAGES, TEXTS.replace("clip.", "clip.text.")), similarities("logsigmoid")],
        "CustomTextCLIP",
        bias=-2.0,
    ),
]
