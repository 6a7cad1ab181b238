"""Encoders of transformers: the layers of their feed-forward parts, of their heads, and the logits."""

from __future__ import annotations

from typing import Any

import torch

from tests.libraries.check import Row
from tests.libraries.hugging_face import BATCH, CLASSES, LENGTH, VOCABULARY, model, sentences, text
from tests.libraries.taps import out

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
CLASSIFIER = {**SMALL, "num_labels": CLASSES}


def spans(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    inputs, _ = text(config)
    positions = {name: torch.randint(0, LENGTH, (BATCH,)) for name in ("start_positions", "end_positions")}
    return inputs, positions


def span_loss(output: Any, labels: dict[str, Any]) -> torch.Tensor:
    return sum(
        torch.nn.functional.cross_entropy(logits, positions)
        for logits, positions in zip((output.start_logits, output.end_logits), labels.values(), strict=True)
    )


def both_tasks(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    inputs, labels = text(config)
    return inputs, {**labels, "next_sentence_label": torch.randint(0, 2, (BATCH,))}


def replaced_tokens(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return text(config)[0], {"labels": torch.randint(0, 2, (BATCH, LENGTH)).double()}


def binary_loss(output: Any, labels: dict[str, Any]) -> torch.Tensor:
    return torch.nn.functional.binary_cross_entropy_with_logits(output.logits, labels["labels"])


def boxes(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    inputs, labels = text(config)
    return {**inputs, "bbox": torch.randint(0, 20, (BATCH, LENGTH, 4)).sort(-1).values}, labels


BERT_HEAD = ["cls.predictions.transform.dense", "cls.predictions.decoder"]
ROBERTA_HEAD = ["lm_head.dense", "lm_head.decoder"]
DISTILBERT = {"vocab_size": VOCABULARY, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "num_labels": CLASSES}
XLM = {"vocab_size": VOCABULARY, "emb_dim": 16, "n_layers": 2, "n_heads": 2, "pad_index": 0, "eos_index": 1}
MOBILEBERT = {**SMALL, "embedding_size": 8, "intra_bottleneck_size": 12, "num_feedforward_networks": 3}

ROWS: list[Row] = [
    *model("bert", "BertForMaskedLM", ["bert.encoder.layer.{2}.intermediate.dense", *BERT_HEAD], **SMALL),
    *model(
        "bert, gelu_new",
        "BertForMaskedLM",
        ["bert.encoder.layer.{2}.intermediate.dense", *BERT_HEAD],
        **SMALL,
        hidden_act="gelu_new",
    ),
    *model(
        "bert, gelu_python",
        "BertForMaskedLM",
        ["bert.encoder.layer.{2}.intermediate.dense", *BERT_HEAD],
        **SMALL,
        hidden_act="gelu_python",
    ),
    *model(
        "bert, sentences",
        "BertForSequenceClassification",
        ["bert.encoder.layer.{2}.intermediate.dense", "bert.pooler.dense", "classifier"],
        sentences,
        **CLASSIFIER,
    ),
    *model(
        "bert, questions",
        "BertForQuestionAnswering",
        ["bert.encoder.layer.{2}.intermediate.dense", "qa_outputs"],
        spans,
        span_loss,
        **SMALL,
    ),
    *model(
        "bert, two tasks",
        "BertForPreTraining",
        ["bert.encoder.layer.{2}.intermediate.dense", "bert.pooler.dense", *BERT_HEAD, "cls.seq_relationship"],
        both_tasks,
        None,
        **SMALL,
    ),
    *model(
        "distilbert",
        "DistilBertForMaskedLM",
        ["distilbert.transformer.layer.{2}.ffn.lin1", "vocab_transform", "vocab_projector"],
        **DISTILBERT,
    ),
    *model(
        "distilbert, sentences",
        "DistilBertForSequenceClassification",
        ["distilbert.transformer.layer.{2}.ffn.lin1", "pre_classifier", "classifier"],
        sentences,
        **DISTILBERT,
    ),
    *model("roberta", "RobertaForMaskedLM", ["roberta.encoder.layer.{2}.intermediate.dense", *ROBERTA_HEAD], **SMALL),
    *model(
        "roberta, sentences",
        "RobertaForSequenceClassification",
        ["roberta.encoder.layer.{2}.intermediate.dense", "classifier.dense", "classifier.out_proj"],
        sentences,
        **CLASSIFIER,
    ),
    # One block with shared weights, run three times.
    *model(
        "albert",
        "AlbertForMaskedLM",
        [
            "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn",
            "predictions.dense",
            "predictions.decoder",
        ],
        **{**SMALL, "num_hidden_layers": 3},
        embedding_size=8,
    ),
    *model(
        "electra",
        "ElectraForMaskedLM",
        ["electra.encoder.layer.{2}.intermediate.dense", "generator_predictions.dense", "generator_lm_head"],
        **SMALL,
        embedding_size=8,
    ),
    *model(
        "electra, replaced tokens",
        "ElectraForPreTraining",
        [
            "electra.encoder.layer.{2}.intermediate.dense",
            "discriminator_predictions.dense",
            "discriminator_predictions.dense_prediction",
        ],
        replaced_tokens,
        binary_loss,
        **SMALL,
        embedding_size=8,
    ),
    *model("deberta-v2", "DebertaV2ForMaskedLM", ["deberta.encoder.layer.{2}.intermediate.dense", *BERT_HEAD], **SMALL),
    # The logits are `x @ embedding.T + bias`, and the result of a module with weights.
    *model(
        "deberta-v2, new head",
        "DebertaV2ForMaskedLM",
        [
            "deberta.encoder.layer.{2}.intermediate.dense",
            out("deberta.encoder.conv.dropout", name="deberta.encoder.conv.conv"),
            "lm_predictions.lm_head.dense",
            "lm_predictions.lm_head",
        ],
        **SMALL,
        legacy=False,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        conv_kernel_size=3,
    ),
    # The logits are a product with two weights side by side.
    *model(
        "mobilebert",
        "MobileBertForMaskedLM",
        [
            "mobilebert.encoder.layer.{2}.ffn.{2}.intermediate.dense",
            "mobilebert.encoder.layer.{2}.intermediate.dense",
            "cls.predictions.transform.dense",
            "cls.predictions",
        ],
        **MOBILEBERT,
    ),
    *model(
        "squeezebert",
        "SqueezeBertForMaskedLM",
        [
            "transformer.encoder.layers.{2}.intermediate.conv1d",
            *BERT_HEAD,
            out("transformer.pooler.dense", live=False),
        ],
        **SMALL,
        embedding_size=16,
    ),
    *model(
        "layoutlm",
        "LayoutLMForMaskedLM",
        [
            "layoutlm.encoder.layer.{2}.intermediate.dense",
            *BERT_HEAD,
            out("layoutlm.pooler.dense", live=False),
        ],
        boxes,
        **SMALL,
    ),
    *model(
        "longformer",
        "LongformerForMaskedLM",
        ["longformer.encoder.layer.{2}.intermediate.dense", *ROBERTA_HEAD],
        **SMALL,
        attention_window=4,
    ),
    *model(
        "bigbird",
        "BigBirdForMaskedLM",
        ["bert.encoder.layer.{2}.intermediate.dense", *BERT_HEAD, out("bert.pooler", live=False)],
        **SMALL,
        attention_type="original_full",
    ),
    *model(
        "nystromformer",
        "NystromformerForMaskedLM",
        ["nystromformer.encoder.layer.{2}.intermediate.dense", *BERT_HEAD],
        **SMALL,
        num_landmarks=4,
        segment_means_seq_len=8,
    ),
    *model(
        "fnet",
        "FNetForMaskedLM",
        ["fnet.encoder.layer.{2}.intermediate.dense", *BERT_HEAD, out("fnet.pooler.dense", live=False)],
        **SMALL,
    ),
    *model(
        "rembert",
        "RemBertForMaskedLM",
        ["rembert.encoder.layer.{2}.intermediate.dense", "cls.predictions.dense", "cls.predictions.decoder"],
        **SMALL,
        input_embedding_size=8,
        output_embedding_size=12,
    ),
    *model("xlm", "XLMWithLMHeadModel", ["transformer.ffns.{2}.lin1", "pred_layer.proj"], **XLM),
]
