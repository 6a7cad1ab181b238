"""Language models of transformers: feed-forward parts with and without gates, experts, recurrences, and the logits."""

from __future__ import annotations

from typing import Any

from tests.libraries.check import Row
from tests.libraries.hugging_face import CLASSES, VOCABULARY, model, sentences
from tests.libraries.taps import Layer, call, chunk, expand, into, layer, out

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "n_inner": 24}
ROTARY_GPT = {**GPT2, "rotary_dim": 4, "bos_token_id": 1, "eos_token_id": 2}
GPT_NEO = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 24,
    "attention_types": [[["global", "local"], 1]],
    "max_position_embeddings": 32,
    "window_size": 4,
}
GATED = ["model.layers.{2}.mlp.gate_proj", "lm_head"]
MIXTURE = {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}
MOE = {
    **SMALL,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 20,
}
GPT_OSS = {
    **MIXTURE,
    "head_dim": 8,
    "sliding_window": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
DEEPSEEK = {
    **MOE,
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}
ZAMBA = {
    **SMALL,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "mamba_d_state": 4,
    "mamba_dt_rank": 4,
    "n_mamba_heads": 1,
    "use_mamba_kernels": False,
    "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
    "attention_hidden_size": 32,
    "attention_head_dim": 16,
}
MAMBA = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "pad_token_id": 0}
RWKV = {"vocab_size": VOCABULARY, "hidden_size": 16, "attention_hidden_size": 16, "num_hidden_layers": 2}


# The library's own ways to run experts; its default is the second, for which PyTorch knows no float64.
WAYS = {"in a loop": "eager", "grouped": "grouped_mm", "in one product": "batched_mm"}


def from_above(turn: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return kwargs.get("min", 0) is None


def experts(path: str) -> list[Layer]:
    """The gate halves of experts in one stacked parameter: what enters their activation module, expert by expert."""
    return [into(f"{each}.act_fn", name=f"{each}.gate_up_proj") for each in expand(path)]


def clamped_experts(path: str) -> list[Layer]:
    """`gate * sigmoid(1.702 * gate)`; the gate is clamped from above, the other half on both sides."""
    return [call(each, "clamp", from_above, name=f"{each}.gate_up_proj") for each in expand(path)]


def mamba(mixer: str) -> list[Layer]:
    """The convolution and the step size, whose weights functions are given, and the gate half of the projection."""
    return [
        call(mixer, "silu", 0, name=f"{mixer}.conv1d"),
        call(mixer, "softplus", name=f"{mixer}.dt_proj"),
        call(mixer, "silu", 1, name=f"{mixer}.in_proj"),
    ]


def zamba(mixer: str) -> list[Layer]:
    """As of Mamba, with the step size by a parameter of its own."""
    convolution, step, gate = mamba(mixer)
    return [convolution, layer(f"{mixer}.dt_proj_weight", step), gate]


ROWS: list[Row] = [
    *model("gpt2", "GPT2LMHeadModel", ["transformer.h.{2}.mlp.c_fc", "lm_head"], **GPT2),
    *model("gpt_neo", "GPTNeoForCausalLM", ["transformer.h.{2}.mlp.c_fc", "lm_head"], **GPT_NEO),
    *model("gpt_neox", "GPTNeoXForCausalLM", ["gpt_neox.layers.{2}.mlp.dense_h_to_4h", "lm_head"], **SMALL),
    *model("gptj", "GPTJForCausalLM", ["transformer.h.{2}.mlp.fc_in", "lm_head"], **ROTARY_GPT),
    *model("codegen", "CodeGenForCausalLM", ["transformer.h.{2}.mlp.fc_in", "lm_head"], **{**ROTARY_GPT, "n_head": 4}),
    # Its GELU is an autograd function of its own.
    *model(
        "bloom",
        "BloomForCausalLM",
        ["transformer.h.{2}.mlp.dense_h_to_4h", "lm_head"],
        vocab_size=VOCABULARY,
        hidden_size=16,
        n_layer=2,
        n_head=2,
        pad_token_id=0,
        says="gelu_impl",
        unseen=expand("transformer.h.{2}.mlp.dense_h_to_4h"),
    ),
    *model(
        "opt",
        "OPTForCausalLM",
        ["model.decoder.layers.{2}.fc1", "lm_head"],
        **SMALL,
        ffn_dim=24,
        word_embed_proj_dim=16,
    ),
    *model("llama", "LlamaForCausalLM", GATED, **SMALL),
    # The loss takes the last token's logits alone; they are a part of what the layer gives.
    *model(
        "llama, sentences",
        "LlamaForSequenceClassification",
        ["model.layers.{2}.mlp.gate_proj", "score"],
        sentences,
        **SMALL,
        num_labels=CLASSES,
    ),
    *model("mistral", "MistralForCausalLM", GATED, **SMALL, sliding_window=4),
    *[
        row
        for way in WAYS
        for row in model(
            f"mixtral, experts {way}",
            "MixtralForCausalLM",
            [*experts("model.layers.{2}.mlp.experts"), "lm_head"],
            **MIXTURE,
            experts_implementation=WAYS[way],
            double=WAYS[way] != "grouped_mm",
        )
    ],
    *model("qwen2", "Qwen2ForCausalLM", GATED, **SMALL),
    *model(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        [
            *experts("model.layers.{2}.mlp.experts"),
            "model.layers.{2}.mlp.shared_expert.gate_proj",
            "model.layers.{2}.mlp.shared_expert_gate",
            "lm_head",
        ],
        **MOE,
        experts_implementation="eager",
    ),
    *model("qwen3", "Qwen3ForCausalLM", GATED, **SMALL, head_dim=8),
    *model("gemma", "GemmaForCausalLM", GATED, **SMALL, head_dim=8),
    *model(
        "gemma2",
        "Gemma2ForCausalLM",
        GATED,
        **SMALL,
        head_dim=8,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
    ),
    # The logits go through `30 * tanh(z / 30)` before the loss; what entered that is the output, whole and once.
    *model(
        "gemma2, capped logits",
        "Gemma2ForCausalLM",
        GATED,
        **SMALL,
        head_dim=8,
        attn_logit_softcapping=None,
        final_logit_softcapping=30.0,
    ),
    *model("phi", "PhiForCausalLM", ["model.layers.{2}.mlp.fc1", "lm_head"], **{**SMALL, "num_key_value_heads": 2}),
    *model(
        "phi3",
        "Phi3ForCausalLM",
        [*[out(path, chunk(0)) for path in expand("model.layers.{2}.mlp.gate_up_proj")], "lm_head"],
        **SMALL,
    ),
    *model(
        "falcon",
        "FalconForCausalLM",
        ["transformer.h.{2}.mlp.dense_h_to_4h", "lm_head"],
        **{**SMALL, "num_key_value_heads": None},
    ),
    *model("stablelm", "StableLmForCausalLM", GATED, **SMALL),
    *model("olmo", "OlmoForCausalLM", GATED, **SMALL),
    *model("starcoder2", "Starcoder2ForCausalLM", ["model.layers.{2}.mlp.c_fc", "lm_head"], **SMALL),
    # relu²
    *model(
        "persimmon",
        "PersimmonForCausalLM",
        ["model.layers.{2}.mlp.dense_h_to_4h", "lm_head"],
        **{**SMALL, "num_key_value_heads": 2},
    ),
    *model("biogpt", "BioGptForCausalLM", ["biogpt.layers.{2}.fc1", "output_projection"], **SMALL),
    # xIELU, an activation with two slopes of its own, written out of `expm1`, `min` and `where`.
    *model("apertus", "ApertusForCausalLM", ["model.layers.{2}.mlp.up_proj", "lm_head"], **SMALL, hidden_act="xielu"),
    *model(
        "mpt",
        "MptForCausalLM",
        ["transformer.blocks.{2}.ffn.up_proj", "lm_head"],
        vocab_size=VOCABULARY,
        d_model=16,
        n_layers=2,
        n_heads=2,
        max_seq_len=32,
    ),
    # The gate of the experts is written out; with clamps.
    *[
        row
        for way in WAYS
        for row in model(
            f"gpt_oss, experts {way}",
            "GptOssForCausalLM",
            [*clamped_experts("model.layers.{2}.mlp.experts"), "lm_head"],
            **GPT_OSS,
            experts_implementation=WAYS[way],
            double=WAYS[way] != "grouped_mm",
        )
    ],
    # A sigmoid decides between the experts, which are stacked; the first layer has none.
    *model(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        [
            "model.layers.0.mlp.gate_proj",
            call("model.layers.1.mlp.gate", "sigmoid", name="model.layers.1.mlp.gate"),
            *experts("model.layers.1.mlp.experts"),
            "model.layers.1.mlp.shared_experts.gate_proj",
            "lm_head",
        ],
        **DEEPSEEK,
        experts_implementation="eager",
    ),
    # The state space's own `exp` belongs to no layer, and is said.
    *model(
        "mamba",
        "MambaForCausalLM",
        [*[one for path in expand("backbone.layers.{2}.mixer") for one in mamba(path)], "lm_head"],
        **MAMBA,
        says="exp",
        must_say=True,
    ),
    # The attention's own `exp` belongs to no layer, and is said.
    *model(
        "rwkv",
        "RwkvForCausalLM",
        [
            "rwkv.blocks.{2}.attention.receptance",
            "rwkv.blocks.{2}.feed_forward.key",
            "rwkv.blocks.{2}.feed_forward.receptance",
            "head",
        ],
        **RWKV,
        says="exp",
        must_say=True,
    ),
    # Two blocks of attention, modules of their own, have all parameters in common: they are passes of one layer.
    *model(
        "zamba",
        "ZambaForCausalLM",
        [
            *[
                one
                for path in ("0", "1.mamba_decoder", "2", "3.mamba_decoder")
                for one in zamba(f"model.layers.{path}.mamba")
            ],
            layer(
                "model.layers.1.shared_transf.feed_forward.gate_proj",
                *(out(f"model.layers.{i}.shared_transf.feed_forward.gate_proj") for i in (1, 3)),
            ),
            "lm_head",
        ],
        **ZAMBA,
        says="exp",
        must_say=True,
    ),
]
