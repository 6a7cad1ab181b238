"""Activations made of other functions: each is one nonlinearity, and what enters it is the potential."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.layers.activations import FUNCTIONS, MODULES, Formula, QuickGELU, gelu, quick_gelu
from tests.support.layers.case import LayerCase, affine, mse_loss, one
from tests.support.layers.cases_outputs import FEATURES, HIDDEN, OUTPUTS, batch, layer_norm, mse


class Activated(nn.Module):
    """A linear layer, an activation, and a head."""

    def __init__(self, act: nn.Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.act, self.head = nn.Linear(FEATURES, HIDDEN), act, nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.first(x)))


def activated(formula: Formula, network: Any, batch: Any):
    z = affine(network.first, batch[0])
    y = affine(network.head, formula(network.act, z))
    return mse_loss(y, batch[1]), {"first": one(z), "head": one(y)}


class Twice(nn.Module):
    """One activation module for two layers, the second of them behind a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.norm, self.head = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.act = QuickGELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.norm(self.second(self.act(self.first(x))))))


def twice(network: Any, batch: Any):
    first = affine(network.first, batch[0])
    normed = layer_norm(network.norm, affine(network.second, quick_gelu(None, first)))
    y = affine(network.head, quick_gelu(None, normed))
    return mse_loss(y, batch[1]), {"first": one(first), "norm": one(normed), "head": one(y)}


class BiasedReLU(nn.Module):
    """Adds the neurons' biases before its nonlinearity, as StyleGAN2 does."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.linspace(-0.8, 0.9, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x + self.bias.view(1, -1), 0.2) * 2**0.5


class BiasedReLUInPlace(BiasedReLU):
    def forward(self, x: Tensor) -> Tensor:
        x += self.bias
        return F.leaky_relu(x, 0.2).mul_(2**0.5)


class BiasedQuickGELU(BiasedReLU):
    def forward(self, x: Tensor) -> Tensor:
        x = 0.9 * x - self.bias
        return x * torch.sigmoid(1.702 * x)


def biased(potential: Callable[[Any, Tensor], Tensor], formula: Formula, network: Any, batch: Any):
    z = potential(network.act, affine(network.first, batch[0]))
    y = affine(network.head, formula(network.act, z))
    return mse_loss(y, batch[1]), {"first": one(z), "head": one(y)}


class ProjectedGELU(nn.Module):
    """An activation with a linear map of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(FEATURES, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x))


class ApproximateGELU(ProjectedGELU):
    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        return x * torch.sigmoid(1.702 * x)


class ProjectedSquare(ProjectedGELU):
    """Gives as many features as it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(FEATURES, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.proj(x)) ** 2


class Projected(nn.Module):
    def __init__(self, act: Callable[[], nn.Module], features: int = HIDDEN) -> None:
        super().__init__()
        self.act, self.head = act(), nn.Linear(features, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(x))


def projected(formula: Formula, network: Any, batch: Any):
    z = affine(network.act.proj, batch[0])
    y = affine(network.head, formula(None, z))
    return mse_loss(y, batch[1]), {"act.proj": one(z), "head": one(y)}


class GatedGELU(nn.Module):
    """The gate half of one linear map enters a GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(FEATURES, 2 * HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class GatedSigmoid(GatedGELU):
    def forward(self, x: Tensor) -> Tensor:
        z = self.proj(x)
        return z[..., :HIDDEN] * torch.sigmoid(z[..., HIDDEN:])


class GatedWritten(GatedGELU):
    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).split(HIDDEN, dim=-1)
        return value * (gate * torch.sigmoid(1.702 * gate))


class GatedTanh(GatedGELU):
    """Both halves enter a nonlinearity, each its own."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return torch.tanh(value) * torch.sigmoid(gate)


def halves(formula: Callable[[Tensor, Tensor], Tensor], network: Any, batch: Any, both: bool = False):
    z = affine(network.act.proj, batch[0])
    value, gate = z[:, :HIDDEN], z[:, HIDDEN:]
    y = affine(network.head, formula(value, gate))
    return mse_loss(y, batch[1]), {"act.proj": [[value, gate]] if both else one(gate), "head": one(y)}


class TwoMaps(nn.Module):
    """A gated unit of two linear maps."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(FEATURES, HIDDEN), nn.Linear(FEATURES, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.gate(x)) * self.up(x)


def two_maps(network: Any, batch: Any):
    z = affine(network.act.gate, batch[0])
    y = affine(network.head, z / (1 + (-z).exp()) * affine(network.act.up, batch[0]))
    return mse_loss(y, batch[1]), {"act.gate": one(z), "head": one(y)}


class RootMeanSquare(nn.Module):
    """A normalisation written out, which is no activation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(FEATURES, HIDDEN), RootMeanSquare(), nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.first(x))))


def normalised(network: Any, batch: Any):
    x = affine(network.first, batch[0])
    z = network.norm.weight * x / ((x**2).mean(-1, keepdim=True) + 1e-6).sqrt()
    y = affine(network.head, z * (z > 0))
    return mse_loss(y, batch[1]), {"norm": one(z), "head": one(y)}


class Refined(nn.Module):
    """Moves points between 0 and 1 by a step on the scale of logits, which guards keep finite."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.step, self.head = (
            nn.Linear(FEATURES, HIDDEN),
            nn.Linear(FEATURES, HIDDEN),
            nn.Linear(HIDDEN, OUTPUTS),
        )

    def forward(self, x: Tensor) -> Tensor:
        points = torch.sigmoid(self.first(x)).clamp(min=0, max=1)
        logits = torch.log(points.clamp(min=1e-5) / (1 - points).clamp(min=1e-5))
        return self.head(torch.sigmoid(self.step(x) + logits))


def refined(network: Any, batch: Any):
    first = affine(network.first, batch[0])
    z = affine(network.step, batch[0]) + first  # far from the guards
    y = affine(network.head, 1 / (1 + (-z).exp()))
    return mse_loss(y, batch[1]), {"first": one(first), "sigmoid": one(z), "head": one(y)}


def _case(name: str, network: Any, reference: Any) -> LayerCase:
    return LayerCase(name, network, batch, mse, reference)


def _by_module(name: str, make: Callable[[], nn.Module], formula: Formula) -> LayerCase:
    return _case(f"activation module, {name}", lambda: Activated(make()), partial(activated, formula))


def _by_function(name: str, function: Callable[[Tensor], Tensor], formula: Formula) -> LayerCase:
    return _case(f"activation function, {name}", lambda: Activated(function), partial(activated, formula))


ACTIVATION_CASES = [
    *(_by_module(name, make, formula) for name, (make, formula) in MODULES.items()),
    *(_by_function(name, function, formula) for name, (function, formula) in FUNCTIONS.items()),
    _case("one activation module for two layers", Twice, twice),
    *(
        _case(
            f"activation module that adds a bias{name}",
            lambda act=act: Activated(act()),
            partial(biased, lambda act, x: x + act.bias, lambda _, z: 2**0.5 * (z * (z > 0) + 0.2 * z * (z <= 0))),
        )
        for name, act in (("", BiasedReLU), (" in place", BiasedReLUInPlace))
    ),
    _case(
        "activation module that adds a bias, written out",
        lambda: Activated(BiasedQuickGELU()),
        partial(biased, lambda act, x: 0.9 * x - act.bias, quick_gelu),
    ),
    _case("linear map and GELU", partial(Projected, ProjectedGELU), partial(projected, gelu)),
    _case("linear map and a GELU written out", partial(Projected, ApproximateGELU), partial(projected, quick_gelu)),
    _case(
        "linear map that keeps the shape",
        partial(Projected, ProjectedSquare, FEATURES),
        partial(projected, lambda _, z: (z * (z > 0)) ** 2),
    ),
    _case("gate half", partial(Projected, GatedGELU), partial(halves, lambda value, gate: value * F.gelu(gate))),
    _case(
        "gate half, slices",
        partial(Projected, GatedSigmoid),
        partial(halves, lambda value, gate: value / (1 + (-gate).exp())),
    ),
    _case(
        "gate half, written out",
        partial(Projected, GatedWritten),
        partial(halves, lambda value, gate: value * quick_gelu(None, gate)),
    ),
    _case(
        "both halves",
        partial(Projected, GatedTanh),
        partial(halves, lambda value, gate: torch.tanh(value) / (1 + (-gate).exp()), both=True),
    ),
    _case("gated unit of two maps", partial(Projected, TwoMaps), two_maps),
    _case("normalisation written out", Normalised, normalised),
    _case("logits of points that guards keep finite", Refined, refined),
]
