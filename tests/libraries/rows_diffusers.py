"""diffusers: one embedding of the time read by every block, gated feed-forward parts, an autoencoder, transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.libraries.check import Case, Row
from tests.libraries.taps import Layer, chunk, expand, out, outs

UNET: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
PLAIN = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
CROSS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 12,
}
AUTOENCODER: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
WAN: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 24,
    "num_layers": 2,
}
SANA: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 2,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 8,
    "cross_attention_dim": 16,
    "caption_channels": 16,
    "sample_size": 8,
    "patch_size": 1,
}
DIT: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "norm_num_groups": 4,
    "sample_size": 16,
    "patch_size": 4,
    "num_embeds_ada_norm": 10,
}
TRANSFORMER: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "num_layers": 2,
    "norm_num_groups": 4,
}
FLUX: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "pooled_projection_dim": 10,
    "axes_dims_rope": (2, 2, 4),
    "guidance_embeds": False,
}


def network(
    name: str,
    class_name: str,
    layers: Iterable[str | Layer],
    step: Callable[[], Callable[[nn.Module], Tensor]],
    says: str = "",
    **settings: Any,
) -> Row:
    """A row; `step` makes the data and gives the loss."""
    layers = list(layers)

    def made() -> Case:
        import diffusers

        net = getattr(diffusers, class_name)(**settings).double().train()
        expected = [one for entry in layers for one in (outs(entry) if isinstance(entry, str) else [entry])]
        return Case(net, step(), expected, says=says)

    return Row("diffusers", name, made)


def resnets(*paths: str) -> list[str]:
    """Both normalisations of residual blocks enter the nonlinearity."""
    return [f"{path}.{norm}" for path in paths for norm in ("norm1", "norm2")]


def gates(*paths: str) -> list[Layer]:
    """The second half of a GEGLU's projection."""
    return [out(f"{path}.ff.net.0.proj", chunk(1)) for path in paths]


def returned() -> Layer:
    """What the whole network gives: its input is added to the last projection."""
    return Layer("output", out("", lambda output: output.sample).taps, named=False)


RESNETS = resnets(
    "down_blocks.0.resnets.0",
    "down_blocks.1.resnets.0",
    *expand("mid_block.resnets.{2}"),
    *expand("up_blocks.{2}.resnets.{2}"),
)
TIME = ["time_embedding.linear_1", "time_embedding.linear_2"]
ENDS = ["conv_norm_out", "conv_out"]
CODER = [
    *resnets(*expand("encoder.down_blocks.{2}.resnets.0"), *expand("encoder.mid_block.resnets.{2}")),
    *resnets(*expand("decoder.mid_block.resnets.{2}"), *expand("decoder.up_blocks.{2}.resnets.{2}")),
    "encoder.conv_norm_out",
    "decoder.conv_norm_out",
    "decoder.conv_out",
]


def noise() -> Callable[[nn.Module], Tensor]:
    images, target, times = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    return lambda net: F.mse_loss(net(images, times).sample, target)


def noise_with_text() -> Callable[[nn.Module], Tensor]:
    latents, target, words = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16), torch.randn(2, 5, 12)
    times = torch.tensor([3, 700])
    return lambda net: F.mse_loss(net(latents, times, words).sample, target)


def reconstruction() -> Callable[[nn.Module], Tensor]:
    images = torch.randn(2, 3, 16, 16)
    return lambda net: F.mse_loss(net(images).sample, images)


def evidence() -> Callable[[nn.Module], Tensor]:
    """The loss of a variational autoencoder, with the methods of the library's training script."""
    images = torch.randn(2, 3, 16, 16)

    def step(net: Any) -> Tensor:
        posterior = net.encode(images).latent_dist
        return F.mse_loss(net.decode(posterior.sample()).sample, images) + 1e-3 * posterior.kl().mean()

    return step


def noise_of_class() -> Callable[[nn.Module], Tensor]:
    latents, target = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16)
    times, classes = torch.tensor([3, 700]), torch.tensor([1, 2])
    return lambda net: F.mse_loss(net(latents, timestep=times, class_labels=classes).sample, target)


def maps() -> Callable[[nn.Module], Tensor]:
    latents, target = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    return lambda net: F.mse_loss(net(latents).sample, target)


def velocities() -> Callable[[nn.Module], Tensor]:
    given = {
        "hidden_states": torch.randn(2, 6, 4),
        "encoder_hidden_states": torch.randn(2, 5, 12),
        "pooled_projections": torch.randn(2, 10),
        "timestep": torch.rand(2),
        "img_ids": torch.zeros(6, 3),
        "txt_ids": torch.zeros(5, 3),
    }
    target = torch.randn(2, 6, 4)
    return lambda net: F.mse_loss(net(**given).sample, target)


def latents(*size: int) -> Callable[[], Callable[[nn.Module], Tensor]]:
    """Of images or videos, told apart by a text."""

    def made() -> Callable[[nn.Module], Tensor]:
        x, text, time = torch.randn(2, 4, *size), torch.randn(2, 5, 16), torch.tensor([1, 5])
        return lambda net: F.mse_loss(net(x, encoder_hidden_states=text, timestep=time).sample, x)

    return made


ROWS: list[Row] = [
    network("UNet2DModel", "UNet2DModel", [*TIME, *RESNETS, *ENDS], noise, **UNET, **PLAIN),
    network(
        "UNet2DConditionModel",
        "UNet2DConditionModel",
        [
            *TIME,
            *RESNETS,
            *gates(
                *(f"{block}.transformer_blocks.0" for block in ("down_blocks.1.attentions.0", "mid_block.attentions.0"))
            ),
            *gates(*(f"up_blocks.0.attentions.{i}.transformer_blocks.0" for i in range(2))),
            *ENDS,
        ],
        noise_with_text,
        **UNET,
        **CROSS,
    ),
    network("AutoencoderKL, its mode", "AutoencoderKL", CODER, reconstruction, **AUTOENCODER),
    # The scale `exp(log-variance / 2)` is a parameter of a distribution and no layer; it lies within the network.
    network(
        "AutoencoderKL, a sample and its divergence",
        "AutoencoderKL",
        [*CODER, "quant_conv"],
        evidence,
        says="exp",
        **AUTOENCODER,
    ),
    # The first block's embedding is evaluated twice. The patches are put together after the last projection.
    network(
        "DiTTransformer2DModel",
        "DiTTransformer2DModel",
        [
            "transformer_blocks.{2}.norm1.emb.timestep_embedder.linear_1",
            "transformer_blocks.{2}.norm1.emb",
            "transformer_blocks.{2}.ff.net.0.proj",
            Layer("proj_out_2", out("proj_out_2").taps, named=False),
        ],
        noise_of_class,
        **DIT,
    ),
    # `x * sigmoid(1.702 * x)` in a module with the linear map.
    network(
        "Transformer2DModel, geglu-approximate",
        "Transformer2DModel",
        ["transformer_blocks.{2}.ff.net.0.proj", returned()],
        maps,
        **TRANSFORMER,
        activation_fn="geglu-approximate",
    ),
    network(
        "Transformer2DModel, swiglu",
        "Transformer2DModel",
        [
            *gates(*expand("transformer_blocks.{2}")),
            returned(),
        ],
        maps,
        **TRANSFORMER,
        activation_fn="swiglu",
    ),
    # One embedding of time and text, a sum, is read by four SiLUs.
    network(
        "FluxTransformer2DModel",
        "FluxTransformer2DModel",
        [
            "time_text_embed.timestep_embedder.linear_1",
            "time_text_embed.text_embedder.linear_1",
            "time_text_embed",
            "transformer_blocks.0.ff.net.0.proj",
            "transformer_blocks.0.ff_context.net.0.proj",
            "single_transformer_blocks.0.proj_mlp",
            "proj_out",
        ],
        velocities,
        **FLUX,
    ),
    network(
        "WanTransformer3DModel",
        "WanTransformer3DModel",
        [
            "condition_embedder.time_embedder.linear_1",
            "condition_embedder.time_embedder.linear_2",
            "condition_embedder.text_embedder.linear_1",
            "blocks.{2}.ffn.net.0.proj",
            "proj_out",
        ],
        latents(2, 8, 8),
        **WAN,
    ),
    # Its attention is linear, of ReLUs of queries and keys.
    network(
        "SanaTransformer2DModel",
        "SanaTransformer2DModel",
        [
            "time_embed.emb.timestep_embedder.linear_1",
            "time_embed.emb.timestep_embedder.linear_2",
            "caption_projection.linear_1",
            "transformer_blocks.{2}.attn1.to_q",
            "transformer_blocks.{2}.attn1.to_k",
            "transformer_blocks.{2}.ff.conv_inverted",
            *(out(path, chunk(1, dim=1)) for path in expand("transformer_blocks.{2}.ff.conv_depth")),
            "proj_out",
        ],
        latents(8, 8),
        **SANA,
    ),
]
