"""Small networks that are hard to watch: reuse, sums, views, dead parts, checkpoints."""

from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn


class LeNet5(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 100)
        self.fc2 = nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class MNISTExample(nn.Module):
    """The network of PyTorch's old MNIST example, without its dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, kernel_size=5)
        self.conv2 = nn.Conv2d(10, 20, kernel_size=5)
        self.fc1 = nn.Linear(320, 50)
        self.fc2 = nn.Linear(50, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = x.view(-1, 320)
        x = F.relu(self.fc1(x))
        return F.log_softmax(self.fc2(x), dim=1)


class ReusedReLU(nn.Module):
    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.relu = nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.relu(self.fc2(self.relu(self.fc1(x)))))


class SharedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.tanh(self.shared(x))
        return self.head(x)


class BasicBlock(nn.Module):
    """The sum of two branches goes into a nonlinearity, written in one of several ways."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.style = style

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.style == "functional":
            return F.relu(out + x)
        if self.style == "functional in place":
            return F.relu(out + x, inplace=True)
        if self.style == "method in place":
            return (out + x).relu_()
        out += x
        return self.relu(out)


class Residual(nn.Module):
    def __init__(self, style: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(BasicBlock(style), BasicBlock(style))
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.conv(x).relu()).mean((2, 3)))


class Dense(nn.Module):
    """Two linear layers; what happens between them is given as a function."""

    def __init__(self, between: Any, features: int = 8) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(features, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.between(self.fc1(x)))


def gated_by_hand(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, 1)
    return value * torch.sigmoid(gate)


def half_in_place(x: Tensor) -> Tensor:
    x[:, :4].relu_()
    return x


def viewed_in_place(x: Tensor) -> Tensor:
    F.relu(x.view(-1, 8), inplace=True)
    return x


def overwritten_and_used(x: Tensor) -> Tensor:
    y = F.relu(x, inplace=True)
    return y + x


def sum_in_place_after(x: Tensor) -> Tensor:
    y = torch.sigmoid(x)
    x += 1
    return y * x


class CalledForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.relu, self.fc2 = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2.forward(self.relu.forward(self.fc1.forward(x)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        mixed, _ = self.attention(x, x, x)
        return self.head(F.gelu(self.norm(x + mixed)).mean(1))


class Encoder(nn.Module):
    def __init__(self, activation: str, norm_first: bool) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(
            8, 2, 16, dropout=0.0, activation=activation, batch_first=True, norm_first=norm_first
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class Tokens(nn.Module):
    """Linear maps of tokens, a residual sum of them, and a class for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Linear(6, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.embed(x))
        return self.head(F.relu(x + self.fc(x)))


class Signal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4)
        self.conv2, self.norm = nn.Conv1d(4, 4, 3), nn.GroupNorm(2, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.elu(self.bn1(self.conv1(x)))
        return self.fc(F.mish(self.norm(self.conv2(x)), inplace=True).mean(-1))


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True))
        self.backbone.requires_grad_(False)
        self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(self.backbone(x)).relu_())


class DeadHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)
        self.dead1, self.dead2 = nn.Linear(8, 5), nn.Linear(5, 3)
        self.auxiliary: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x))
        self.auxiliary = torch.tanh(self.dead2(F.relu(self.dead1(x)))).detach()
        return self.fc2(x)


class DetachedBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.fc = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.relu(self.left(x)), F.relu(self.right(x)).detach()
        return self.fc(torch.cat([left, right], 1))


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.use_reentrant = use_reentrant

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.fc2(x), inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.fc1(x))
        x = torch.utils.checkpoint.checkpoint(self.middle, x, use_reentrant=self.use_reentrant)
        return self.fc3(x)


class LossInside(nn.Module):
    """Gives the loss itself, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.fc2(F.relu(self.fc1(x))), labels)


class Segmentation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.leaky_relu(self.conv1(x), 0.1, inplace=True))


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head1, self.head2 = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.fc(x))
        return self.head1(x), self.head2(x)


def mlp(outputs: int, *last: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, outputs), *last)


def activated_input() -> nn.Module:
    return nn.Sequential(nn.Tanh(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


class Cube(torch.autograd.Function):
    """A function into which nobody sees."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        z: Tensor = ctx.saved_tensors[0]
        return 3 * z.square() * gradient
