"""peft: adapters of several kinds on a frozen LLaMA and BERT."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from tests.libraries.check import Case, Row
from tests.libraries.hugging_face import BATCH, CLASSES, LENGTH, VOCABULARY, build
from tests.libraries.taps import Layer, out, outs

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
LLAMA, BERT = "LlamaForCausalLM", "BertForSequenceClassification"
SETTINGS = {LLAMA: {**SIZES, "num_key_value_heads": 2}, BERT: {**SIZES, "num_labels": CLASSES}}


def adapted(
    name: str,
    class_name: str,
    config: str,
    layers: Iterable[Layer],
    finish: Callable[[Any], nn.Module] = lambda network: network,
    **settings: Any,
) -> Row:
    """A row of one kind of adapters.

    Args:
        name: of the row.
        class_name: of the network, in transformers.
        config: class of the configuration, in peft.
        layers: of the definition.
        finish: what is done with the network besides.
        settings: of the configuration.
    """
    layers = list(layers)

    def made() -> Case:
        import peft

        network, _ = build(class_name, SETTINGS[class_name])
        task = "CAUSAL_LM" if class_name == LLAMA else "SEQ_CLS"
        network = peft.get_peft_model(network, getattr(peft, config)(task_type=task, **settings)).double().train()
        with torch.no_grad():  # adapters start as if they were not there
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        tokens = torch.randint(3, VOCABULARY, (BATCH, LENGTH))
        labels = tokens if class_name == LLAMA else torch.randint(0, CLASSES, (BATCH,))
        return Case(finish(network), lambda net: net(input_ids=tokens, labels=labels).loss, layers)

    return Row("peft", name, made)


def checkpointed(network: Any) -> nn.Module:
    network.enable_input_require_grads()
    network.gradient_checkpointing_enable()
    return network


def gates(first_is_live: bool = True, gate: str = "gate_proj", model: str = "base_model.model.model") -> list[Layer]:
    """The gates of a LLaMA's two blocks, and its logits."""
    head = f"{model.rpartition('.')[0]}.lm_head".removeprefix(".")
    first, second = (f"{model}.layers.{number}.mlp.{gate}" for number in (0, 1))
    return [out(first, live=first_is_live), out(second), out(head)]


SENTENCES = outs(
    "base_model.model.bert.encoder.layer.{2}.intermediate.dense",
    "base_model.model.bert.pooler.dense",
    "base_model.model.classifier.modules_to_save.default",
)
ATTENTION, FEED = ["q_proj", "v_proj"], ["q_proj", "gate_proj"]
PROMPTED = gates(model="base_model.model")

ROWS: list[Row] = [
    adapted("LoRA in attention", LLAMA, "LoraConfig", gates(), r=4, target_modules=ATTENTION),
    adapted(
        "LoRA in attention, checkpoints", LLAMA, "LoraConfig", gates(), checkpointed, r=4, target_modules=ATTENTION
    ),
    # What lies before the first adapter is a constant.
    adapted("LoRA after gates", LLAMA, "LoraConfig", gates(False), r=4, target_modules=["down_proj"]),
    adapted("LoRA, all linear maps", LLAMA, "LoraConfig", gates(), r=4, target_modules="all-linear", lora_dropout=0.1),
    adapted(
        "LoRA, merged",
        LLAMA,
        "LoraConfig",
        gates(model="model"),
        lambda network: network.merge_and_unload().requires_grad_(True),
        r=4,
        target_modules=FEED,
    ),
    adapted("DoRA", LLAMA, "LoraConfig", gates(), r=4, target_modules="all-linear", use_dora=True),
    adapted("VeRA", LLAMA, "VeraConfig", gates(), r=4, target_modules=FEED),
    adapted("LoKr", LLAMA, "LoKrConfig", gates(), r=4, target_modules=FEED),
    adapted("AdaLoRA", LLAMA, "AdaLoraConfig", gates(), init_r=4, target_r=2, total_step=10, target_modules=FEED),
    # The frozen layer is given inputs that the adapter has turned.
    adapted("OFT", LLAMA, "OFTConfig", gates(gate="gate_proj.base_layer"), oft_block_size=4, target_modules=FEED),
    adapted("FourierFT", LLAMA, "FourierFTConfig", gates(), n_frequency=20, target_modules=FEED),
    adapted("HRA", LLAMA, "HRAConfig", gates(), r=4, target_modules=FEED),
    adapted("norms alone", LLAMA, "LNTuningConfig", gates(), target_modules=["post_attention_layernorm"]),
    adapted("prompts", LLAMA, "PromptTuningConfig", PROMPTED, num_virtual_tokens=3),
    adapted(
        "prompts made by a network",
        LLAMA,
        "PromptEncoderConfig",
        [*outs("prompt_encoder.default.mlp_head.0", "prompt_encoder.default.mlp_head.2"), *PROMPTED],
        num_virtual_tokens=3,
        encoder_hidden_size=10,
    ),
    adapted("prefixes", LLAMA, "PrefixTuningConfig", PROMPTED, num_virtual_tokens=3),
    adapted("LoRA and a new head", BERT, "LoraConfig", SENTENCES, r=4, target_modules=["query", "value"]),
    adapted("(IA)³ and a new head", BERT, "IA3Config", SENTENCES),
]
