"""Activation modules and functions as libraries write them, each with another formula for the same values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NewGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class FastGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


class AccurateGELU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.constant = math.sqrt(2 / math.pi)

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(self.constant * (x + 0.044715 * torch.pow(x, 3))))


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class GELU(nn.Module):
    """Chooses a way to compute it, one of them in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.act = self._python

    def _python(self, x: Tensor) -> Tensor:
        return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


class Laplace(nn.Module):
    def forward(self, x: Tensor, mu: float = 0.707107, sigma: float = 0.282095) -> Tensor:
        x = (x - mu).div(sigma * math.sqrt(2.0))
        return 0.5 * (1.0 + torch.erf(x))


class XIELU(nn.Module):
    """Two slopes that are learned."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha_p, self.alpha_n = nn.Parameter(torch.tensor([0.4])), nn.Parameter(torch.tensor([0.3]))
        self.beta, self.eps = 0.5, -1e-6

    def forward(self, x: Tensor) -> Tensor:
        alpha_p = F.softplus(self.alpha_p)
        alpha_n = self.beta + F.softplus(self.alpha_n)
        return torch.where(
            x > 0,
            alpha_p * x * x + self.beta * x,
            (torch.expm1(torch.clamp(x, max=self.eps)) - x) * alpha_n + self.beta * x,
        )


def xielu(act: Any, z: Tensor) -> Tensor:
    positive, negative = (1 + act.alpha_p.exp()).log(), 0.5 + (1 + act.alpha_n.exp()).log()
    return torch.where(z > 0, positive * z**2, negative * (z.exp() - 1 - z)) + 0.5 * z


class Snake(nn.Module):
    """A frequency for each feature, learned."""

    def __init__(self, features: int = 5) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.linspace(0.5, 1.5, features))

    def forward(self, x: Tensor) -> Tensor:
        return x + (1.0 / (self.alpha + 1e-9)) * torch.sin(x * self.alpha).pow(2)


class StarReLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.tensor(0.9)), nn.Parameter(torch.tensor(-0.4))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * torch.relu(x) ** 2 + self.bias


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(3.0 * x)


class Gaussian(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(-x.square())


class Clamped(nn.Module):
    """A hard sigmoid of nothing but a clamp."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 3.0).clamp(0.0, 6.0) / 6.0


class ReLUSquared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.square(F.relu(x))


class SquarePlus(nn.Module):
    """Made of roots and squares alone."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + torch.sqrt(torch.square(x) + 4.0)) / 2.0


class InPlace(nn.Module):
    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace


class Swish(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(x.sigmoid()) if self.inplace else x.mul(x.sigmoid())


class SwishFunction(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (x,) = context.saved_tensors
        return gradient * (torch.sigmoid(x) + x * torch.sigmoid(x) * (1 - torch.sigmoid(x)))


class VisibleSwish(nn.Module):
    """A custom function made of torch functions."""

    def forward(self, x: Tensor) -> Tensor:
        return SwishFunction.apply(x)


class Mish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul(F.softplus(x).tanh())


class HardSwish(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu6(x + 3.0).div_(6.0)
        return x.mul_(inner) if self.inplace else x.mul(inner)


class HardSigmoid(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(3.0).clamp_(0.0, 6.0).div_(6.0) if self.inplace else F.relu6(x + 3.0) / 6.0


class HardMish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (x + 2).clamp(min=0, max=2)


Formula = Callable[[Any, Tensor], Tensor]


def gelu_tanh(_: Any, z: Tensor) -> Tensor:
    return F.gelu(z, approximate="tanh")


def cube_constant_gelu(_: Any, z: Tensor) -> Tensor:
    """The constant rounded, as in `FastGELU`."""
    return z / (1 + torch.exp(-2 * 0.7978845608 * (z + 0.044715 * z**3)))


def gelu(_: Any, z: Tensor) -> Tensor:
    return F.gelu(z)


def quick_gelu(_: Any, z: Tensor) -> Tensor:
    return z / (1 + torch.exp(-1.702 * z))


def swish(_: Any, z: Tensor) -> Tensor:
    return z / (1 + torch.exp(-z))


def mish(_: Any, z: Tensor) -> Tensor:
    return z * torch.tanh((1 + z.exp()).log())


def hard_sigmoid(_: Any, z: Tensor) -> Tensor:
    return torch.where(z < -3, 0 * z, torch.where(z > 3, 0 * z + 1, z / 6 + 0.5))


def hard_swish(_: Any, z: Tensor) -> Tensor:
    return z * hard_sigmoid(_, z)


def hard_mish(_: Any, z: Tensor) -> Tensor:
    return z * torch.where(z < -2, 0 * z, torch.where(z > 0, 0 * z + 1, z / 2 + 1))


def square_plus(_: Any, z: Tensor) -> Tensor:
    return 2 / ((z**2 + 4) ** 0.5 - z)


def inverse_square_root(_: Any, z: Tensor) -> Tensor:
    return torch.sin(torch.atan(z))


MODULES: dict[str, tuple[Callable[[], nn.Module], Formula]] = {
    "NewGELU": (NewGELU, gelu_tanh),
    "FastGELU": (FastGELU, cube_constant_gelu),
    "AccurateGELU": (AccurateGELU, gelu_tanh),
    "QuickGELU": (QuickGELU, quick_gelu),
    "GELU in Python": (GELU, gelu),
    "Laplace": (Laplace, lambda _, z: torch.special.ndtr((z - 0.707107) / 0.282095)),
    "xIELU": (XIELU, xielu),
    "Snake": (Snake, lambda act, z: z + (1 - torch.cos(2 * act.alpha * z)) / (2 * (act.alpha + 1e-9))),
    "StarReLU": (StarReLU, lambda act, z: act.scale * (z * (z > 0)) ** 2 + act.bias),
    "sine": (Sine, lambda _, z: torch.cos(3 * z - math.pi / 2)),
    "Gaussian": (Gaussian, lambda _, z: 1 / (z**2).exp()),
    "clamp": (Clamped, hard_sigmoid),
    "squared ReLU": (ReLUSquared, lambda _, z: (z > 0) * z**2),
    "SquarePlus": (SquarePlus, square_plus),
    "Swish": (Swish, swish),
    "Swish in place": (lambda: Swish(True), swish),
    "Swish by a custom function": (VisibleSwish, swish),
    "Mish": (Mish, mish),
    "HardSwish": (HardSwish, hard_swish),
    "HardSwish in place": (lambda: HardSwish(True), hard_swish),
    "HardSigmoid": (HardSigmoid, hard_sigmoid),
    "HardSigmoid in place": (lambda: HardSigmoid(True), hard_sigmoid),
    "HardMish": (HardMish, hard_mish),
}


def written_out_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def written_out_tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))


def sigmoid_and_relu(_: Any, z: Tensor) -> Tensor:
    return 1 / (1 + (-z).exp()) + z * (z > 0)


def assigned(x: Tensor) -> Tensor:
    """Overwrites what it is given."""
    x[x < 0] = 0.0
    return x


def assigned_in(y: Tensor, x: Tensor) -> Tensor:
    y[x < 0] = 0.0
    return y


def assigned_to_copy(x: Tensor) -> Tensor:
    """Overwrites a copy of what it is given, where that is in a range."""
    y = x.clone()
    y[(x > -0.6) * (x < 0.7)] = 0.0
    return y


def hard_shrink(_: object, x: Tensor) -> Tensor:
    return x * ((x <= -0.6) | (x >= 0.7))


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Formula]] = {
    "GELU": (written_out_gelu, gelu),
    "GELU by tanh": (written_out_tanh_gelu, gelu_tanh),
    "x * sigmoid(1.702 x)": (lambda x: x * torch.sigmoid(1.702 * x), quick_gelu),
    "x * sigmoid(x)": (lambda x: x * x.sigmoid(), swish),
    "x * tanh(softplus(x))": (lambda x: x * torch.tanh(F.softplus(x)), mish),
    "x * relu6(x + 3) / 6": (lambda x: x * F.relu6(x + 3) / 6, hard_swish),
    "(x + sqrt(x² + 4)) / 2": (lambda x: (x + torch.sqrt(torch.square(x) + 4)) / 2, square_plus),
    "x * rsqrt(1 + x²)": (lambda x: x * torch.rsqrt(1 + x * x), inverse_square_root),
    "sigmoid(x) + relu_(x)": (lambda x: torch.sigmoid(x) + F.relu(x, inplace=True), sigmoid_and_relu),
    "sigmoid(x) + relu_(xᵀ)ᵀ": (lambda x: torch.sigmoid(x) + F.relu_(x.mT).mT, sigmoid_and_relu),
    "x[x < 0] = 0": (assigned, lambda act, x: x * (x > 0)),
    "a copy, y[x < 0] = 0": (lambda x: assigned_in(x.clone(), x), lambda act, x: x * (x > 0)),
    "a copy, y[(x > a) * (x < b)] = 0": (assigned_to_copy, hard_shrink),
    "x * ((x > a) * (x < b))": (lambda x: x * ((x > -0.6) * (x < 0.7)), lambda act, x: x - hard_shrink(act, x)),
}
