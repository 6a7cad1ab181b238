"""LitGPT: gates and experts as functions and modules, logits in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from tests.libraries.check import Case, Row
from tests.libraries.taps import outs

SMALL: dict[str, Any] = {
    "block_size": 16,
    "vocab_size": 40,
    "padded_vocab_size": 40,
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 16,
    "intermediate_size": 24,
}


def whole(network: Any, tokens: Tensor, targets: Tensor) -> Tensor:
    from litgpt.utils import chunked_cross_entropy

    return chunked_cross_entropy(network(tokens), targets, chunk_size=0)


def in_chunks(network: Any, tokens: Tensor, targets: Tensor) -> Tensor:
    """The loss of the library's pretraining, in chunks of a few tokens."""
    from litgpt.utils import chunked_cross_entropy

    return chunked_cross_entropy(network(tokens), targets, chunk_size=5)


def with_a_chunked_head(network: Any, tokens: Tensor, targets: Tensor) -> Tensor:
    """The loss of the library's finetuning: the head is called for a few tokens at a time."""
    from litgpt.utils import chunked_cross_entropy

    logits = network(tokens, lm_head_chunk_size=3)
    return chunked_cross_entropy(logits, targets, chunk_size=3)


def network(
    name: str, layers: Iterable[str], loss: Callable[[Any, Tensor, Tensor], Tensor] = whole, **settings: Any
) -> Row:
    layers = list(layers)

    def made() -> Case:
        from litgpt import GPT, Config

        net = GPT(Config(**{**SMALL, **settings})).double().train()
        tokens, targets = torch.randint(0, 40, (3, 8)), torch.randint(0, 40, (3, 8))
        return Case(net, lambda n: loss(n, tokens, targets), outs(*layers))

    return Row("litgpt", name, made)


NEOX = ["transformer.h.{2}.mlp.fc", "lm_head"]
GATED = ["transformer.h.{2}.mlp.fc_1", "lm_head"]

ROWS: list[Row] = [
    network("GPT-NeoX", NEOX),
    network("GPT-NeoX, loss in chunks", NEOX, in_chunks),
    network("GPT-NeoX, head in chunks", NEOX, with_a_chunked_head),
    network("LLaMA", GATED, in_chunks, mlp_class_name="LLaMAMLP", norm_class_name="RMSNorm", bias=False),
    network("Gemma", GATED, mlp_class_name="GemmaMLP", norm_class_name="RMSNorm", bias=False, gelu_approximate="tanh"),
    # Experts that are modules are a layer each.
    network(
        "Mixtral",
        ["transformer.h.{2}.mlp.experts.{3}.fc_1", "lm_head"],
        mlp_class_name="LLaMAMoE",
        moe_intermediate_size=12,
        n_expert=3,
        n_expert_per_token=2,
        norm_class_name="RMSNorm",
        bias=False,
    ),
]
