"""vit-pytorch, x-transformers and denoising-diffusion-pytorch: small networks with many variants."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.libraries.check import Row
from tests.libraries.plain.network import Made
from tests.libraries.plain.network import network as row
from tests.libraries.taps import Layer, chunk, into, out, outs, result

SIZE, CLASSES, TOKENS = 16, 5, 20
VIT = {"image_size": SIZE, "patch_size": 8, "num_classes": CLASSES, "dim": 16, "heads": 2, "mlp_dim": 20}


# --- vit-pytorch ------------------------------------------------------------------------------------------------------


def images(size: int = SIZE) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, size, size), torch.tensor([1, 2])


def vit(name: str, layers: Iterable[str | Layer], module: str, class_name: str = "ViT", size: int = SIZE, **more: Any):
    def make() -> Made:
        network = getattr(importlib.import_module(f"vit_pytorch.{module}"), class_name)(**more)
        x, labels = images(size)
        return network, lambda net: F.cross_entropy(net(x), labels)

    return row("vit-pytorch", name, make, layers)


def distilled(hard: bool) -> Callable[[], Made]:
    def make() -> Made:
        from vit_pytorch.distill import DistillableViT, DistillWrapper

        teacher = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
        network = DistillWrapper(
            student=DistillableViT(depth=1, **VIT), teacher=teacher, temperature=3, alpha=0.5, hard=hard
        )
        x, labels = images()
        return network, lambda net: net(x, labels)

    return make


def dino(kind: str) -> Callable[[], Made]:
    """A network that computes its loss of a student and a teacher itself."""

    def make() -> Made:
        own: dict[str, Any] = {"projection_hidden_size": 12, "projection_layers": 2, "num_classes_K": 9}
        if kind == "DINO":
            from vit_pytorch.dino import Dino
            from vit_pytorch.vit import ViT

            network: nn.Module = Dino(ViT(depth=1, **VIT), image_size=SIZE, hidden_layer="to_latent", **own)
        else:
            from vit_pytorch.cvt import CvT
            from vit_pytorch.es_vit import EsViTTrainer

            network = EsViTTrainer(CvT(**CVT), image_size=32, hidden_layer="layers", **own)
        x = torch.rand(2, 3, 16 if kind == "DINO" else 32, 16 if kind == "DINO" else 32)
        network(x)  # makes the projections, and the teacher
        return network, lambda net: net(x)

    return make


CVT = {"num_classes": CLASSES, **{f"s{stage}_emb_dim": 8 for stage in (1, 2, 3)}, "s2_depth": 1, "s3_depth": 1}
FEED = "transformer.layers.0.1.net.1"

# --- x-transformers ---------------------------------------------------------------------------------------------------


def decoder(name: str, layers: Iterable[str | Layer], depth: int = 1, tied: bool = False, **own: Any):
    """A decoder of next tokens with the loss in the step."""

    def make() -> Made:
        import x_transformers

        network = x_transformers.TransformerWrapper(
            num_tokens=TOKENS,
            max_seq_len=10,
            tie_embedding=tied,
            attn_layers=x_transformers.Decoder(dim=16, depth=depth, heads=2, attn_dim_head=8, **own),
        )
        tokens = torch.randint(0, TOKENS, (2, 9))
        return network, lambda net: F.cross_entropy(net(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:])

    return row("x-transformers", name, make, layers)


def continuous(**own: Any) -> Callable[[], Made]:
    def make() -> Made:
        import x_transformers

        inner = x_transformers.ContinuousTransformerWrapper(
            dim_in=6, dim_out=6, max_seq_len=8, attn_layers=x_transformers.Decoder(dim=16, depth=1, heads=2), **own
        )
        x = torch.randn(2, 8, 6)
        return x_transformers.ContinuousAutoregressiveWrapper(inner), lambda net: net(x)

    return make


def autoregressive() -> Made:
    import x_transformers

    inner = x_transformers.TransformerWrapper(
        num_tokens=TOKENS, max_seq_len=10, attn_layers=x_transformers.Decoder(dim=16, depth=1, heads=2)
    )
    tokens = torch.randint(0, TOKENS, (2, 9))
    return x_transformers.AutoregressiveWrapper(inner), lambda net: net(tokens)


def preferences() -> Made:
    """Direct preference optimisation, whose loss the network computes of two calls of the policy."""
    import x_transformers

    policy = x_transformers.TransformerWrapper(
        num_tokens=TOKENS, max_seq_len=8, attn_layers=x_transformers.Decoder(dim=16, depth=1, heads=2)
    )
    preferred, other = torch.randint(1, TOKENS, (2, 8)), torch.randint(1, TOKENS, (2, 8))
    prompts = torch.arange(8).expand(2, 8) < 3
    return x_transformers.DPO(policy), lambda net: net(preferred, other, prompt_mask=prompts)


NORMS = ("attn_layers.layers.0.0.0", "attn_layers.layers.1.0.0", "attn_layers.final_norm")
MLP = "attn_layers.layers.1.1.ff.0.0"

# --- denoising-diffusion-pytorch --------------------------------------------------------------------------------------


def diffusion(class_name: str, unet: dict[str, Any], **own: Any) -> Callable[[], Made]:
    def make() -> Made:
        import denoising_diffusion_pytorch as library

        network = library.Unet(dim=8, dim_mults=(1, 2), attn_dim_head=4, attn_heads=2, **unet)
        x = torch.rand(2, 3, 8, 8)
        return getattr(library, class_name)(network, image_size=8, timesteps=10, **own), lambda net: net(x)

    return make


DIFFUSION = "denoising-diffusion-pytorch"
# The first block of each pair is shifted and scaled before its activation.
BLOCKS = [
    *(f"model.{side}.{level}.{block}" for side in ("downs", "ups") for level in (0, 1) for block in (0, 1)),
    "model.mid_block1",
    "model.mid_block2",
    "model.final_res_block",
]
UNET = [
    *outs("model.time_mlp.1", "model.time_mlp.3", "model.final_conv"),
    *(into(f"{block}.block1.act") for block in BLOCKS),
    *outs(*(f"{block}.block2.norm" for block in BLOCKS)),
]

ROWS: list[Row] = [
    vit("ViT", [FEED, "mlp_head"], "vit", depth=1, **VIT),
    vit("SimpleViT", [FEED, "linear_head"], "simple_vit", "SimpleViT", depth=1, **VIT),
    vit(
        "CaiT",
        ["patch_transformer.layers.0.1.fn.net.1", "cls_transformer.layers.0.1.fn.net.1", "mlp_head.1"],
        "cait",
        "CaiT",
        depth=1,
        cls_depth=1,
        **VIT,
    ),
    vit("DeepViT", [FEED, "mlp_head.1"], "deepvit", "DeepViT", depth=1, **VIT),
    vit("CvT", ["layers.{3}.2.layers.0.1.net.1", "to_logits.2"], "cvt", "CvT", 32, **CVT),
    vit(
        "parallel ViT",
        ["transformer.layers.0.1.fns.{2}.net.1", "mlp_head.1"],
        "parallel_vit",
        depth=1,
        **VIT,
    ),
    vit(
        "XCiT",
        [
            "xcit_transformer.layers.0.1.fn.net.3",
            "xcit_transformer.layers.0.2.fn.net.1",
            "cls_transformer.layers.0.1.fn.net.1",
            "mlp_head.1",
        ],
        "xcit",
        "XCiT",
        depth=1,
        cls_depth=1,
        **VIT,
    ),
    *[
        row(
            "vit-pytorch",
            f"distillation, {'hard' if hard else 'soft'}",
            distilled(hard),
            [f"student.{FEED}", "student.mlp_head", "distill_mlp.1"],
        )
        for hard in (False, True)
    ],
    row(
        "vit-pytorch",
        "DINO",
        dino("DINO"),
        [f"net.{FEED}", "student_encoder.projector.net.0", "student_encoder.projector.net.3"],
    ),
    row(
        "vit-pytorch",
        "EsViT",
        dino("EsViT"),
        [
            "net.layers.{3}.2.layers.0.1.net.1",
            *(f"student_encoder.{kind}_projector.net.{number}" for kind in ("view", "region") for number in (0, 3)),
        ],
    ),
    decoder("decoder", [MLP, "to_logits"]),
    # The gate is the second half of one linear map.
    decoder("decoder, gated", [out("attn_layers.layers.1.1.ff.0.proj", chunk(1)), "to_logits"], ff_glu=True),
    decoder("decoder, squared ReLU", [MLP, "to_logits"], ff_relu_squared=True),
    decoder("decoder, values gated", ["attn_layers.layers.0.1.to_v_gate", MLP, "to_logits"], attn_gate_values=True),
    decoder(
        "decoder, blocks used twice",
        [MLP, "to_logits"],
        depth=2,
        weight_tie_layers=True,
    ),
    decoder(
        "decoder, normed by tanh",
        ["attn_layers.layers.1.1.ff.0.0", "to_logits", *map(into, NORMS)],
        use_dynamic_tanh=True,
    ),
    decoder("decoder, tied embedding", [MLP, result("", "__matmul__", name="token_emb.emb")], tied=True),
    row("x-transformers", "continuous", continuous(), [f"net.{MLP}", "net.project_out"]),
    row(
        "x-transformers",
        "continuous, normal distribution",
        continuous(probabilistic=True),
        [f"net.{MLP}", "net.project_out"],
    ),
    row(
        "x-transformers",
        "AutoregressiveWrapper",
        autoregressive,
        [f"net.{MLP}", "net.to_logits"],
        says="No output layer was found",
        unseen=("net.to_logits",),
    ),
    row("x-transformers", "DPO", preferences, [f"policy_model.{MLP}", "policy_model.to_logits"]),
    row(DIFFUSION, "noise", diffusion("GaussianDiffusion", {}), UNET),
    row(DIFFUSION, "velocity", diffusion("GaussianDiffusion", {}, objective="pred_v", min_snr_loss_weight=True), UNET),
    row(DIFFUSION, "learned variance", diffusion("LearnedGaussianDiffusion", {"learned_variance": True}), UNET),
]
