"""TabNet, the baselines of "Revisiting Deep Learning Models for Tabular Data", and TabM."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.libraries.check import Row
from tests.libraries.plain.network import Made, network
from tests.libraries.taps import Layer, chunk, out

NUMBERS, CLASSES, SAMPLES = 4, 3, 8
WIDTHS = {"n_blocks": 2, "d_block": 8}


def data() -> tuple[Tensor, Tensor, Tensor]:
    """Numbers, categories and classes."""
    return torch.randn(SAMPLES, NUMBERS), torch.randint(0, 3, (SAMPLES, 2)), torch.randint(0, CLASSES, (SAMPLES,))


def tabnet(virtual_batch: int) -> Made:
    from pytorch_tabnet.tab_network import TabNet

    groups = torch.eye(NUMBERS)
    net = TabNet(NUMBERS, CLASSES, 4, 4, n_steps=2, virtual_batch_size=virtual_batch, group_attention_matrix=groups)
    numbers, _, labels = data()

    def step(n: Any) -> Tensor:
        logits, sparsity = n(numbers)
        return F.cross_entropy(logits, labels) - 0.1 * sparsity

    return net, step


def baseline(name: str, **settings: Any) -> Made:
    import rtdl_revisiting_models

    numbers, _, labels = data()
    net = getattr(rtdl_revisiting_models, name)(d_in=NUMBERS, d_out=CLASSES, **WIDTHS, **settings)
    return net, lambda n: F.cross_entropy(n(numbers), labels)


def ft_transformer() -> Made:
    from rtdl_revisiting_models import FTTransformer

    numbers, categories, labels = data()
    settings = {**FTTransformer.get_default_kwargs(1), **WIDTHS, "attention_n_heads": 2}
    net = FTTransformer(n_cont_features=NUMBERS, cat_cardinalities=[3, 3], d_out=CLASSES, **settings)
    return net, lambda n: F.cross_entropy(n(numbers, categories), labels)


def tabm(kind: str, piecewise: bool = False) -> Made:
    import rtdl_num_embeddings as embeddings
    from tabm import TabM

    numbers, categories, labels = data()
    embedding = None
    if piecewise:
        bins = embeddings.compute_bins(torch.randn(40, NUMBERS), n_bins=5)
        embedding = embeddings.PiecewiseLinearEmbeddings(bins, d_embedding=6, activation=True, version="B")
    net = TabM.make(
        n_num_features=NUMBERS,
        cat_cardinalities=[3, 3],
        d_out=CLASSES,
        k=3,
        arch_type=kind,
        num_embeddings=embedding,
        **WIDTHS,
    )
    return net, lambda n: F.cross_entropy(n(numbers, categories).flatten(0, 1), labels.repeat_interleave(3))


def gate(z: Tensor) -> Tensor:
    return z[:, 8:]


def decision(z: Tensor) -> Tensor:
    return z[:, :4]


BLOCKS = ["initial_splitter", "feat_transformers.0", "feat_transformers.1"]
# The gates, the halves on which a step decides, and the logits. What attends to features is a sparsemax.
TABNET: list[str | Layer] = [
    *(
        out(f"tabnet.encoder.{block}.{kind}.glu_layers.{i}.bn", gate)
        for block in BLOCKS
        for kind in ("shared", "specifics")
        for i in range(2)
    ),
    *(out(f"tabnet.encoder.{block}.specifics", decision) for block in BLOCKS[1:]),
    "tabnet.final_mapping",
]
TABM = ["backbone.blocks.{2}.0", "output"]
RTDL = "rtdl_revisiting_models"

ROWS: list[Row] = [
    network("pytorch-tabnet", "TabNet", partial(tabnet, 64), TABNET, says="SparsemaxFunction"),
    network("pytorch-tabnet", "TabNet, ghost batches", partial(tabnet, 4), TABNET, says="SparsemaxFunction"),
    network(RTDL, "MLP", partial(baseline, "MLP", dropout=0.1), ["blocks.{2}.linear", "output"]),
    network(
        RTDL,
        "ResNet",
        partial(baseline, "ResNet", d_hidden=6, d_hidden_multiplier=None, dropout1=0.1, dropout2=0.1),
        ["blocks.{2}.linear1", "output.normalization", "output.linear"],
    ),
    network(
        RTDL,
        "FT-Transformer",
        ft_transformer,
        [
            *(out(f"backbone.blocks.{i}.ffn.linear1", chunk(1)) for i in range(2)),
            "backbone.output.normalization",
            "backbone.output.linear",
        ],
    ),
    network("tabm", "TabM", partial(tabm, "tabm"), TABM),
    network("tabm", "TabM-mini", partial(tabm, "tabm-mini"), TABM),
    network("tabm", "TabM-packed", partial(tabm, "tabm-packed"), TABM),
    network("tabm", "TabM, piecewise linear embeddings", partial(tabm, "tabm", True), ["num_module.linear", *TABM]),
]
