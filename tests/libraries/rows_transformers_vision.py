"""Vision models of transformers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.libraries.check import Row
from tests.libraries.hugging_face import CLASSES, images, model
from tests.libraries.taps import Layer, expand, into, out, outs, result

VIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": CLASSES,
}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [2, 1], "num_labels": CLASSES}
MOBILEVIT = {
    "image_size": 64,
    "hidden_sizes": [8, 8, 8],
    "neck_hidden_sizes": [8] * 7,
    "num_attention_heads": 2,
    "expand_ratio": 2.0,
    "num_labels": CLASSES,
}
SEGFORMER = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "sr_ratios": [2, 1],
    "hidden_sizes": [8, 16],
    "patch_sizes": [3, 3],
    "strides": [2, 2],
    "num_attention_heads": [1, 2],
    "mlp_ratios": [2, 2],
    "decoder_hidden_size": 12,
    "num_labels": CLASSES,
}
EFFICIENTNET = {
    "image_size": 32,
    "width_coefficient": 0.1,
    "depth_coefficient": 0.1,
    "hidden_dim": 128,
    "kernel_sizes": [3, 3],
    "in_channels": [8, 8],
    "out_channels": [8, 8],
    "depthwise_padding": [],
    "strides": [1, 2],
    "num_block_repeats": [1, 1],
    "expand_ratios": [1, 4],
    "num_labels": CLASSES,
}
POOLFORMER = {
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "num_encoder_blocks": 2,
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "padding": [2, 1],
    "mlp_ratio": 2.0,
    "num_labels": CLASSES,
}
LEVIT = {
    "image_size": 64,
    "hidden_sizes": [16, 24, 24],
    "num_attention_heads": [2, 2, 2],
    "depths": [1, 1, 1],
    "key_dim": [4, 4, 4],
    "down_ops": [["Subsample", 4, 4, 2, 2, 2]] * 2,
    "num_labels": CLASSES,
}


def mobilevit() -> list[str | Layer]:
    """Inverted residuals, and blocks of a transformer between convolutions."""
    blocks = ["layer.0.layer.0", *expand("layer.1.layer.{3}"), *(f"layer.{i}.downsampling_layer" for i in (2, 3, 4))]
    names = ["conv_stem", *(f"encoder.{block}.{conv}" for block in blocks for conv in ("expand_1x1", "conv_3x3"))]
    names += [f"encoder.layer.{i}.{conv}" for i in (2, 3, 4) for conv in ("conv_kxk", "conv_projection", "fusion")]
    transformers = [
        f"mobilevit.encoder.layer.{i}.transformer.layer.{k}.intermediate.dense"
        for i, depth in ((2, 2), (3, 4), (4, 3))
        for k in range(depth)
    ]
    return [*(f"mobilevit.{name}.normalization" for name in [*names, "conv_1x1_exp"]), *transformers, "classifier"]


def resnet(inner: int) -> list[str | Layer]:
    """Convolutions with batch norms, and the sums with the shortcut."""
    blocks = [f"resnet.encoder.stages.{block}" for block in ("0.layers.0", "0.layers.1", "1.layers.0")]
    return [
        "resnet.embedder.embedder.normalization",
        *(f"{block}.layer.{i}.normalization" for block in blocks for i in range(inner)),
        *(into(f"{block}.activation") for block in blocks),
        "classifier.1",
    ]


def regnet() -> list[str | Layer]:
    blocks = [f"regnet.encoder.stages.{i}.layers.0" for i in range(2)]
    return [
        "regnet.embedder.embedder.normalization",
        *(f"{block}.layer.{i}.normalization" for block in blocks for i in range(2)),
        *(f"{block}.layer.2.attention.{i}" for block in blocks for i in (0, 2)),
        *(into(f"{block}.activation") for block in blocks),
        "classifier.1",
    ]


def levit() -> list[str | Layer]:
    """The attention's result is a sum over values, and made by no module alone."""
    stages = "levit.encoder.stages"
    attentions = ["0.layers.0.module", "0.layers.2", "1.layers.0.module", "1.layers.2", "2.layers.0.module"]
    mixers = ["0.layers.1", "0.layers.3", "1.layers.1", "1.layers.3", "2.layers.1"]
    return [
        *(f"levit.patch_embeddings.embedding_layer_{i}.batch_norm" for i in (1, 2, 3)),
        *(into(f"{stages}.{block}.activation") for block in attentions),
        *(f"{stages}.{block}.module.linear_up.batch_norm" for block in mixers),
        "classifier.linear",
    ]


def efficientnet() -> list[str | Layer]:
    blocks = expand("efficientnet.encoder.blocks.{2}")
    return [
        "efficientnet.embeddings.batchnorm",
        *(f"{block}.depthwise_conv.depthwise_norm" for block in blocks),
        *(f"{block}.squeeze_excite.{part}" for block in blocks for part in ("reduce", "expand")),
        "efficientnet.encoder.blocks.1.expansion.expand_bn",
        "efficientnet.encoder.top_bn",
        "classifier",
    ]


def maps(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"pixel_values": torch.randn(2, 3, 32, 32)}, {"labels": torch.randint(0, CLASSES, (2, 32, 32))}


def map_loss(output: Any, labels: dict[str, Any]) -> Tensor:
    upsampled = F.interpolate(output.logits, size=(32, 32), mode="bilinear")
    return F.cross_entropy(upsampled, labels["labels"])


SEGFORMER_LAYERS = ["segformer.stages.{2}.blocks.0.mlp.dwconv.dwconv", "decode_head.batch_norm"]


def boxes(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    targets = [
        {"class_labels": torch.randint(0, CLASSES, (2,)), "boxes": torch.rand(2, 4, dtype=torch.float64) * 0.3 + 0.3}
        for _ in range(2)
    ]
    return {"pixel_values": torch.randn(2, 3, 32, 32)}, {"labels": targets}


def box_loss(output: Any, labels: dict[str, Any]) -> Tensor:
    """A loss without matching: the first queries are for the targets."""
    classes = torch.stack([target["class_labels"] for target in labels["labels"]])
    places = torch.stack([target["boxes"] for target in labels["labels"]])
    return F.cross_entropy(output.logits[:, :2].flatten(0, 1), classes.flatten()) + F.l1_loss(
        output.pred_boxes[:, :2], places
    )


DETR_HEADS = ["class_labels_classifier", *expand("bbox_predictor.layers.{3}")]


def detr() -> list[str | Layer]:
    """The whole backbone is frozen, for its stages have other names than the model expects: constants.

    Its batch norms have buffers for weights: their results are named after them or after the activation.
    """
    backbone = "model.backbone.model"
    blocks = [f"{backbone}.encoder.stages.{stage}.layers.0" for stage in range(2)]
    frozen = [
        out(f"{backbone}.embedder.embedder.normalization", live=False),
        *(
            one
            for block in blocks
            for one in (out(f"{block}.layer.0.normalization", live=False), into(f"{block}.activation", live=False))
        ),
    ]
    return [
        *(replace(one, named=one.name.endswith("activation")) for one in frozen),
        *outs("model.encoder.layers.{2}.mlp.fc1", "model.decoder.layers.{2}.mlp.fc1"),
        *DETR_HEADS,
    ]


def detr_settings() -> dict[str, Any]:
    import transformers

    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    return {
        "backbone_config": backbone,
        "use_timm_backbone": False,
        "use_pretrained_backbone": False,
        "backbone": None,
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "num_queries": 5,
        "num_labels": CLASSES,
    }


def vit(name: str, class_name: str, *layers: str, **more: Any) -> list[Row]:
    return model(name, class_name, layers, images(), **{**VIT, **more})


ROWS: list[Row] = [
    *vit("vit", "ViTForImageClassification", "vit.layers.{2}.mlp.fc1", "classifier"),
    *vit("deit", "DeiTForImageClassification", "deit.layers.{2}.mlp.fc1", "classifier"),
    *vit("beit", "BeitForImageClassification", "beit.layers.{2}.mlp.fc1", "classifier"),
    *vit(
        "dinov2, SwiGLU",
        "Dinov2ForImageClassification",
        "dinov2.encoder.layer.{2}.mlp.gate_proj",
        "classifier",
        use_swiglu_ffn=True,
    ),
    *model(
        "swin",
        "SwinForImageClassification",
        ["swin.encoder.layers.{2}.blocks.0.mlp.fc1", "classifier"],
        images(),
        **SWIN,
        num_labels=CLASSES,
    ),
    *model(
        "convnext",
        "ConvNextForImageClassification",
        ["convnext.encoder.stages.{2}.layers.0.pwconv1", "classifier"],
        images(),
        hidden_sizes=[8, 8],
        depths=[1, 1],
        num_stages=2,
        num_labels=CLASSES,
    ),
    *model("resnet", "ResNetForImageClassification", resnet(1), images(), **RESNET, layer_type="basic"),
    *model(
        "resnet, bottlenecks", "ResNetForImageClassification", resnet(2), images(), **RESNET, layer_type="bottleneck"
    ),
    *model(
        "regnet", "RegNetForImageClassification", regnet(), images(), **{**RESNET, "depths": [1, 1]}, groups_width=4
    ),
    *model("mobilevit", "MobileViTForImageClassification", mobilevit(), images(64, 4), **MOBILEVIT),
    *model("efficientnet", "EfficientNetForImageClassification", efficientnet(), images(), **EFFICIENTNET),
    *model(
        "poolformer",
        "PoolFormerForImageClassification",
        ["poolformer.encoder.block.{2}.0.output.conv1", "classifier"],
        images(),
        **POOLFORMER,
    ),
    *model("levit", "LevitForImageClassification", levit(), images(64, 4), **LEVIT),
    # What enters the loss is the upsampled map, which no weights have made after the classifier.
    *model(
        "segformer",
        "SegformerForSemanticSegmentation",
        [*SEGFORMER_LAYERS, result("", "interpolate", name="decode_head.classifier")],
        maps,
        None,
        **SEGFORMER,
    ),
    *model(
        "segformer, returned logits",
        "SegformerForSemanticSegmentation",
        [*SEGFORMER_LAYERS, "decode_head.classifier"],
        maps,
        lambda output, labels: F.cross_entropy(output.logits, labels["labels"][:, ::2, ::2]),
        inside=False,
        **SEGFORMER,
    ),
    *model(
        "yolos",
        "YolosForObjectDetection",
        [
            "vit.encoder.layer.{2}.intermediate.dense",
            "class_labels_classifier.layers.{3}",
            "bbox_predictor.layers.{3}",
        ],
        boxes,
        box_loss,
        **{**VIT, "image_size": [32, 32]},
        num_detection_tokens=5,
    ),
]
ROWS += model("detr", "DetrForObjectDetection", detr(), boxes, box_loss, made_late=detr_settings)
