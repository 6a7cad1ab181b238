"""Sequence to sequence, audio, and images with text."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.libraries.check import Row
from tests.libraries.hugging_face import BATCH, LENGTH, VOCABULARY, model, sequences, text
from tests.libraries.taps import Layer, call, out

T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
BART: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 20,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
FEED_FORWARD = ["model.encoder.layers.{2}.fc1", "model.decoder.layers.{2}.fc1"]
WAV2VEC2: dict[str, Any] = {
    "vocab_size": 12,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8, 8],
    "conv_kernel": [8, 4],
    "conv_stride": [4, 2],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "layerdrop": 0.0,
    "mask_time_length": 2,
    "pad_token_id": 0,
}
WHISPER = {**BART, "num_mel_bins": 6, "max_source_positions": 8, "max_target_positions": 16}
TOWER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
TEXT_TOWER = {
    **TOWER,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 16,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
TOWERS = {
    "text_config": TEXT_TOWER,
    "vision_config": {**TOWER, "image_size": 32, "patch_size": 8},
    "projection_dim": 12,
}


def with_bias(made: str = "logits") -> Layer:
    """The logits: a head's result with a buffer added, which nothing but the model itself gives."""
    return Layer(made, out("lm_head").taps, named=False)


def audio(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"input_values": torch.randn(2, 200)}, {"labels": torch.randint(1, 12, (2, 3))}


def ctc(output: Any, labels: dict[str, Any]) -> Tensor:
    probabilities = output.logits.log_softmax(-1).transpose(0, 1)
    lengths = [torch.full((2,), length) for length in (probabilities.shape[0], 3)]
    return F.ctc_loss(probabilities, labels["labels"], *lengths)


def spectra(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    tokens = torch.randint(3, VOCABULARY, (2, LENGTH))
    return {"input_features": torch.randn(2, 6, 16), "decoder_input_ids": tokens}, {"labels": tokens.roll(1, -1)}


def pairs(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    tokens = torch.cat([text(config)[0]["input_ids"], torch.full((BATCH, 1), 2)], 1)
    return {"input_ids": tokens, "pixel_values": torch.randn(BATCH, 3, 32, 32)}, {"return_loss": True}


def contrastive(output: Any, labels: dict[str, Any]) -> Tensor:
    """Both directions, from the logits and their transpose."""
    right = torch.arange(BATCH)
    return F.cross_entropy(output.logits_per_image, right) + F.cross_entropy(output.logits_per_text, right)


def pairwise(output: Any, labels: dict[str, Any]) -> Tensor:
    signs = 2 * torch.eye(BATCH, dtype=torch.float64) - 1
    return -F.logsigmoid(signs * output.logits_per_text).sum(-1).mean()


def similarity() -> Layer:
    """Scaled products of embeddings, returned with their transpose."""
    return Layer("logits", call("", "t", from_logits).taps, named=False)


def from_logits(turn: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return args[0].shape == (BATCH, BATCH)


CLIP_LAYERS = ["text_model.encoder.layers.{2}.mlp.fc1", "vision_model.encoder.layers.{2}.mlp.fc1"]

ROWS: list[Row] = [
    *model(
        "t5",
        "T5ForConditionalGeneration",
        [
            "encoder.block.{2}.layer.1.DenseReluDense.wi",
            "decoder.block.{2}.layer.2.DenseReluDense.wi",
            "lm_head",
        ],
        sequences,
        **T5,
    ),
    # The gate's GELU is written out of tanh.
    *model(
        "t5, gated",
        "T5ForConditionalGeneration",
        [
            "encoder.block.{2}.layer.1.DenseReluDense.wi_0",
            "decoder.block.{2}.layer.2.DenseReluDense.wi_0",
            "lm_head",
        ],
        sequences,
        **T5,
        feed_forward_proj="gated-gelu",
    ),
    *model("bart", "BartForConditionalGeneration", [*FEED_FORWARD, with_bias()], sequences, **BART),
    *model("pegasus", "PegasusForConditionalGeneration", [*FEED_FORWARD, with_bias()], sequences, **BART),
    *model("marian", "MarianMTModel", [*FEED_FORWARD, with_bias()], sequences, **BART),
    *model("mbart", "MBartForConditionalGeneration", [*FEED_FORWARD, with_bias()], sequences, **BART),
    # The first convolutions' GELU is a function in the encoder's code.
    *model(
        "whisper",
        "WhisperForConditionalGeneration",
        ["model.encoder.conv1", "model.encoder.conv2", *FEED_FORWARD, "proj_out"],
        spectra,
        **WHISPER,
    ),
    # The position's convolution has its padding cut off before the GELU.
    *model(
        "wav2vec2",
        "Wav2Vec2ForCTC",
        [
            "wav2vec2.feature_extractor.conv_layers.0.layer_norm",
            "wav2vec2.feature_extractor.conv_layers.1.conv",
            out("wav2vec2.encoder.pos_conv_embed.padding", name="wav2vec2.encoder.pos_conv_embed.conv"),
            "wav2vec2.encoder.layers.{2}.feed_forward.intermediate_dense",
            "lm_head",
        ],
        audio,
        ctc,
        **WAV2VEC2,
    ),
    *model(
        "hubert",
        "HubertForCTC",
        [
            "hubert.feature_extractor.conv_layers.{2}.layer_norm",
            out("hubert.encoder.pos_conv_embed.padding", name="hubert.encoder.pos_conv_embed.conv"),
            "hubert.encoder.layers.{2}.feed_forward.intermediate_dense",
            "lm_head",
        ],
        audio,
        ctc,
        **WAV2VEC2,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
    ),
    # QuickGELU; the logits are used with their transpose.
    *model("clip", "CLIPModel", [*CLIP_LAYERS, similarity()], pairs, contrastive, **TOWERS, says="exp"),
    *model(
        "siglip",
        "SiglipModel",
        [*CLIP_LAYERS, "vision_model.head.mlp.fc1", similarity()],
        pairs,
        pairwise,
        **TOWERS,
        says="exp",
    ),
    *model(
        "blip",
        "BlipModel",
        [
            "text_model.encoder.layer.{2}.intermediate.dense",
            "text_model.pooler.dense",
            "vision_model.encoder.layers.{2}.mlp.fc1",
            similarity(),
        ],
        pairs,
        contrastive,
        **TOWERS,
        says="exp",
    ),
]
