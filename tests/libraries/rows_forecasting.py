"""pytorch-forecasting, neuralforecast, Darts and GluonTS, by their own trainers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.libraries.check import Row
from tests.libraries.forecasting import darts, gluonts, neuralforecast, pytorch_forecasting
from tests.libraries.taps import Layer, expand, gates, into, out


def prediction(part: Callable[[Any], Any] | None = lambda output: output["prediction"]) -> Layer:
    """What the network returned, after the last affine step on its way, which has no weights."""
    return Layer("prediction", out("", part).taps, named=False)


def whole() -> Layer:
    return prediction(None)


def residual_networks(*paths: str) -> list[str | Layer]:
    """Gated residual networks without context: an ELU, and `F.glu`, whose input is the potential."""
    return [part for path in paths for part in (f"{path}.fc1", f"{path}.gate_norm.glu.fc")]


def with_context(*paths: str) -> list[str | Layer]:
    """With a context added before the ELU."""
    return [part for path in paths for part in (into(f"{path}.elu"), out(f"{path}.gate_norm.glu.fc"))]


TFT = [
    *residual_networks(
        "static_context_variable_selection",
        "static_context_initial_hidden_lstm",
        "static_context_initial_cell_lstm",
        "static_context_enrichment",
        "encoder_variable_selection.single_variable_grns.x",
        "encoder_variable_selection.single_variable_grns.y",
        "decoder_variable_selection.single_variable_grns.x",
        "pos_wise_ff",
    ),
    *with_context("encoder_variable_selection.flattened_grn", "static_enrichment"),
    *gates("lstm_encoder"),
    *gates("lstm_decoder"),
    "post_lstm_gate_encoder.fc",
    "post_attn_gate_norm.glu.fc",
    "pre_output_gate_norm.glu.fc",
    prediction(),
]


def normal(library: Any) -> Any:
    return library.losses.pytorch.DistributionLoss("Normal")


def quantiles(library: Any) -> Any:
    return library.QuantileLoss()


def returned() -> Layer:
    return Layer("prediction", out("").taps, named=False)


def gaussian() -> Any:
    from darts.utils.likelihood_models.torch import GaussianLikelihood

    return GaussianLikelihood()


# What a distribution's parameters are made from: each has a linear map of its own, two of them a softplus.
PARAMETERS = "model.{}.proj.{{3}}"

ROWS: list[Row] = [
    pytorch_forecasting(
        "DecoderMLP", "DecoderMLP", [*(f"mlp.sequential.{i}" for i in (0, 4, 8, 12)), prediction()], hidden_size=8
    ),
    pytorch_forecasting(
        "NHiTS",
        "NHiTS",
        ["model.blocks.{3}.layers.layers.0", "model.blocks.{3}.layers.layers.2", prediction()],
        hidden_size=8,
    ),
    pytorch_forecasting(
        "RecurrentNetwork", "RecurrentNetwork", [*gates("rnn", 2), prediction()], hidden_size=8, dropout=0.0
    ),
    # The scale is a softplus of a half of what the last layer gives; both halves are returned beside the data's scale.
    pytorch_forecasting("DeepAR", "DeepAR", [*gates("rnn", 2), "distribution_projector"], hidden_size=8, dropout=0.0),
    pytorch_forecasting(
        "TemporalFusionTransformer",
        "TemporalFusionTransformer",
        TFT,
        hidden_size=8,
        attention_head_size=2,
        hidden_continuous_size=4,
        loss=quantiles,
    ),
    neuralforecast("MLP", "MLP", ["mlp.{2}", "out"], hidden_size=8),
    # `mean, raw = output.chunk(2); scale = softplus(raw)` in the loss.
    neuralforecast("MLP, normal distribution", "MLP", ["mlp.{2}", "out"], hidden_size=8, loss=normal),
    neuralforecast(
        "NHITS",
        "NHITS",
        [*(f"blocks.{i}.layers.{k}" for i in range(3) for k in (1, 3, 5)), whole()],
        mlp_units=[[8, 8]] * 3,
    ),
    neuralforecast(
        "LSTM",
        "LSTM",
        [*gates("hist_encoder", 2), "mlp_decoder.layers.0", "mlp_decoder.layers.3"],
        encoder_hidden_size=8,
        decoder_hidden_size=8,
    ),
    # Convolutions whose end is cut off before the nonlinearity.
    neuralforecast(
        "TCN",
        "TCN",
        [
            *(into(f"{path}.activation", name=f"{path}.conv") for path in expand("hist_encoder.tcn.{5}")),
            "mlp_decoder.layers.0",
            "mlp_decoder.layers.3",
        ],
        encoder_hidden_size=8,
        decoder_hidden_size=8,
    ),
    neuralforecast(
        "TiDE",
        "TiDE",
        ["dense_encoder.0.lin1", "dense_decoder.0.lin1", "temporal_decoder.lin1", whole()],
        hidden_size=8,
        decoder_output_dim=4,
        temporal_decoder_dim=8,
    ),
    neuralforecast(
        "PatchTST",
        "PatchTST",
        ["model.backbone.encoder.layers.{2}.ff.0", whole()],
        hidden_size=8,
        n_heads=2,
        linear_hidden_size=12,
        encoder_layers=2,
        patch_len=2,
        stride=2,
    ),
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
