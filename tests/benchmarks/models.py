"""The networks whose training steps are measured, their random data, and the module that trains them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from torchvision.models import VisionTransformer, mobilenet_v2, resnet18, resnet50, vit_b_16

CLASSES = 10
VOCABULARY = 8192
LAM = 1e-3


def lenet5() -> nn.Module:
    """20 and 50 filters, 500 hidden units."""
    return nn.Sequential(
        *(nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, CLASSES)),
    )


def resnet18_small_images() -> nn.Module:
    """Torchvision's ResNet-18 with the stem that images of 32×32 take."""
    network = resnet18(num_classes=CLASSES)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def small_vit(size: int) -> nn.Module:
    """Six blocks of width 192 on 4×4 patches."""
    return VisionTransformer(
        image_size=size,
        patch_size=4,
        num_layers=6,
        num_heads=3,
        hidden_dim=192,
        mlp_dim=768,
        num_classes=CLASSES,
    )


class DecoderBlock(nn.Module):
    """Causal attention and a GELU network, each behind a layer norm and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.projection(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """12 decoder blocks of width 768."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, 768), nn.Embedding(length, 768)
        self.blocks = nn.Sequential(*(DecoderBlock(768, 12) for _ in range(12)))
        self.norm, self.head = nn.LayerNorm(768), nn.Linear(768, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of every position."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions(positions))))


@dataclass(frozen=True)
class Model:
    """A network and the size of its data.

    Args:
        make: gives the network for images of a width or for texts of a length.
        channels: of the images; 0 for texts.
        size: width of the images, or length of the texts.
        smallest_size: the smallest that the network takes.
        batch_size: samples of a batch.
    """

    make: Callable[[int], nn.Module]
    channels: int
    size: int
    smallest_size: int
    batch_size: int

    def batch(self, size: int, batch_size: int, device: str) -> tuple[Tensor, Tensor]:
        """Random inputs and labels."""
        if self.channels == 0:
            tokens = torch.randint(VOCABULARY, (2, batch_size, size), device=device)
            return tokens[0], tokens[1]
        images = torch.randn(batch_size, self.channels, size, size, device=device)
        return images, torch.randint(CLASSES, (batch_size,), device=device)


MODELS = {
    "lenet5": Model(lambda size: lenet5(), 1, 28, 28, 100),
    "resnet18": Model(lambda size: resnet18_small_images(), 3, 32, 8, 64),
    "mobilenet_v2": Model(lambda size: mobilenet_v2(num_classes=CLASSES), 3, 32, 8, 64),
    "vit": Model(small_vit, 3, 32, 4, 64),
    "resnet50": Model(lambda size: resnet50(num_classes=CLASSES), 3, 224, 8, 32),
    "vit_b_16": Model(lambda size: vit_b_16(image_size=size, num_classes=CLASSES), 3, 224, 16, 32),
    "gpt": Model(GPT, 0, 512, 4, 8),
}
SMALL_MODELS = ("lenet5", "resnet18", "mobilenet_v2", "vit")


class Classifier(LightningModule):
    """A plain module that knows nothing of potentials, unless it is told to penalise them by hooks.

    Args:
        network: what is trained.
        logged: number of values that each step logs.
    """

    def __init__(self, network: nn.Module, logged: int = 0) -> None:
        super().__init__()
        self.network = network
        self._logged = logged
        self._hooks: list[RemovableHandle] = []
        self._squares: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Cross entropy of a batch, and the penalty where hooks are there."""
        inputs, labels = batch
        self._squares = []
        logits = self.network(inputs)
        loss = functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
        if self._hooks:
            self._squares.append((logits**2).mean())
            loss = loss + LAM * torch.stack(self._squares).sum() / len(self._squares)
        self.log_dict({f"loss_{number}": loss for number in range(self._logged)})
        return loss

    def penalise_by_hooks(self) -> None:
        """The usual way: hooks on the activation modules square their inputs."""
        for module in self.network.modules():
            if isinstance(module, (nn.ReLU, nn.ReLU6, nn.GELU)):
                self._hooks.append(module.register_forward_pre_hook(self._square))

    def _square(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        z = inputs[0].clone() if getattr(module, "inplace", False) else inputs[0]
        self._squares.append((z**2).mean())

    def remove_hooks(self) -> None:
        """No penalty any more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.01)
