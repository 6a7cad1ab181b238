"""Darts and GluonTS, by their own trainers."""

from __future__ import annotations

from typing import Any

from tests.libraries.check import Row
from tests.libraries.forecasting import darts, gluonts
from tests.libraries.taps import Layer, gates, out


def returned() -> Layer:
    return Layer("prediction", out("").taps, named=False)


def gaussian() -> Any:
    from darts.utils.likelihood_models.torch import GaussianLikelihood

    return GaussianLikelihood()


# What a distribution's parameters are made from: each has a linear map of its own, two of them a softplus.
PARAMETERS = "model.{}.proj.{{3}}"

ROWS: list[Row] = [
    darts(
        "NBEATS",
        "NBEATSModel",
        ["stacks.0.blocks.0.fc_stack.{2}", returned()],
        num_stacks=1,
        num_blocks=1,
        num_layers=2,
        layer_widths=8,
    ),
    darts(
        "TiDE",
        "TiDEModel",
        ["encoders.0.dense.0", "decoders.0.dense.0", "temporal_decoder.dense.0", returned()],
        hidden_size=8,
        decoder_output_dim=4,
        temporal_decoder_hidden=8,
    ),
    darts(
        "Transformer",
        "TransformerModel",
        ["transformer.encoder.layers.0.linear1", "transformer.decoder.layers.0.linear1", "decoder"],
        d_model=8,
        nhead=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        dim_feedforward=12,
    ),
    darts("RNN", "RNNModel", [*gates("rnn"), "V"], model="LSTM", hidden_dim=8),
    darts("RNN, Gaussian likelihood", "RNNModel", [*gates("rnn"), "V"], model="GRU", hidden_dim=8, likelihood=gaussian),
    darts(
        "TCN",
        "TCNModel",
        ["res_blocks.0.conv1", "res_blocks.0.conv2", "res_blocks.1.conv1", returned()],
        num_filters=4,
        kernel_size=3,
    ),
    gluonts(
        "DeepAR",
        "DeepAREstimator",
        [*gates("model.rnn", 2), PARAMETERS.format("param_proj")],
        hidden_size=8,
        freq="D",
        num_layers=2,
        dropout_rate=0.0,
    ),
    gluonts(
        "SimpleFeedForward",
        "SimpleFeedForwardEstimator",
        ["model.nn.0", PARAMETERS.format("args_proj")],
        hidden_dimensions=[8, 8],
    ),
    gluonts(
        "PatchTST",
        "PatchTSTEstimator",
        ["model.encoder.layers.{2}.linear1", PARAMETERS.format("args_proj")],
        patch_len=2,
        d_model=8,
        nhead=2,
        dim_feedforward=12,
    ),
]
