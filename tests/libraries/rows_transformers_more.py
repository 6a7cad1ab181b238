"""Further decoders, encoders, sequence to sequence, images and a forecast of transformers."""

from __future__ import annotations

from typing import Any

import torch

from tests.libraries.check import Row
from tests.libraries.hugging_face import BATCH, CLASSES, VOCABULARY, images, model, sequences

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**TEXT, "num_key_value_heads": 1}
BOTH: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 20,
    "pad_token_id": 0,
}
T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 20,
    "num_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
STAGES: dict[str, Any] = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "num_labels": CLASSES}
ATTENDING = {**STAGES, "num_attention_heads": [1, 1, 1, 1], "mlp_ratios": [2, 2, 2, 2]}
INFORMER: dict[str, Any] = {
    "prediction_length": 4,
    "context_length": 8,
    "input_size": 1,
    "lags_sequence": [1, 2],
    "num_time_features": 1,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 20,
    "sampling_factor": 2,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
}


def gated(name: str, class_name: str) -> list[Row]:
    return model(name, class_name, ["model.layers.{2}.mlp.gate_proj", "lm_head"], **GROUPED)


def upward(name: str, class_name: str) -> list[Row]:
    return model(name, class_name, ["model.layers.{2}.mlp.up_proj", "lm_head"], **GROUPED)


def series(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A past that is observed, its times, and a future."""
    past = {
        "past_values": torch.randn(BATCH, 10),
        "past_time_features": torch.randn(BATCH, 10, 1),
        "past_observed_mask": torch.ones(BATCH, 10),
    }
    return past, {"future_values": torch.randn(BATCH, 4), "future_time_features": torch.randn(BATCH, 4, 1)}


ROWS: list[Row] = [
    *gated("granite", "GraniteForCausalLM"),
    *gated("cohere", "CohereForCausalLM"),
    *gated("olmo2", "Olmo2ForCausalLM"),
    *gated("smollm3", "SmolLM3ForCausalLM"),
    *gated("gemma3", "Gemma3ForCausalLM"),
    *gated("ernie4.5", "Ernie4_5ForCausalLM"),
    *upward("nemotron", "NemotronForCausalLM"),
    *upward("arcee", "ArceeForCausalLM"),
    # Its attention bounds the scores by `torch.max`.
    *model(
        "xglm",
        "XGLMForCausalLM",
        ["model.layers.{2}.fc1", "lm_head"],
        vocab_size=VOCABULARY,
        d_model=16,
        ffn_dim=20,
        num_layers=2,
        attention_heads=2,
        pad_token_id=0,
    ),
    *model(
        "mpnet",
        "MPNetForMaskedLM",
        ["mpnet.encoder.layer.{2}.intermediate.dense", "lm_head.dense", "lm_head.decoder"],
        **TEXT,
    ),
    *model(
        "megatron-bert",
        "MegatronBertForMaskedLM",
        [
            "bert.encoder.layer.{2}.intermediate.dense",
            "cls.predictions.transform.dense",
            "cls.predictions.decoder",
        ],
        **TEXT,
    ),
    *model(
        "convbert",
        "ConvBertForMaskedLM",
        ["convbert.encoder.layer.{2}.intermediate.dense", "generator_predictions.dense", "generator_lm_head"],
        **TEXT,
    ),
    *model(
        "m2m100",
        "M2M100ForConditionalGeneration",
        ["model.encoder.layers.0.fc1", "model.decoder.layers.0.fc1", "lm_head"],
        sequences,
        **BOTH,
    ),
    *model(
        "longt5",
        "LongT5ForConditionalGeneration",
        ["encoder.block.0.layer.1.DenseReluDense.wi", "decoder.block.0.layer.2.DenseReluDense.wi", "lm_head"],
        sequences,
        **T5,
    ),
    *model(
        "umt5",
        "UMT5ForConditionalGeneration",
        ["encoder.block.0.layer.1.DenseReluDense.wi_0", "decoder.block.0.layer.2.DenseReluDense.wi_0", "lm_head"],
        sequences,
        **T5,
    ),
    *model(
        "convnextv2",
        "ConvNextV2ForImageClassification",
        ["convnextv2.encoder.stages.{4}.layers.0.pwconv1", "classifier"],
        images(),
        **STAGES,
    ),
    *model(
        "pvt_v2",
        "PvtV2ForImageClassification",
        ["pvt_v2.encoder.layers.{4}.blocks.0.mlp.dwconv.dwconv", "classifier"],
        images(),
        **ATTENDING,
    ),
    *model(
        "mobilenet_v1",
        "MobileNetV1ForImageClassification",
        ["mobilenet_v1.conv_stem.normalization", "mobilenet_v1.layer.{26}.normalization", "classifier"],
        images(),
        depth_multiplier=0.25,
        num_labels=CLASSES,
    ),
    # The parameters of a Student's t distribution are functions of what three linear maps give, returned squeezed.
    *model(
        "informer",
        "InformerForPrediction",
        [
            "model.encoder.layers.{2}.fc1",
            "model.encoder.conv_layers.0.norm",
            "model.decoder.layers.{2}.fc1",
            "parameter_projection.proj.{3}",
        ],
        series,
        None,
        **INFORMER,
    ),
]
