"""What a network returns, and which of it is the output layer."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.layers.case import LayerCase, affine, mse_loss, one

FEATURES, HIDDEN, OUTPUTS, BATCH = 4, 5, 2, 3


class Trunk(nn.Module):
    """One hidden layer and a head."""

    def __init__(self, outputs: int = OUTPUTS) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, outputs)

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x))

    def forward(self, x: Tensor) -> Any:
        return self.head(self.hidden(x))


def trunk(network: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden potential, hidden values, output."""
    z = affine(network.first, x)
    return z, torch.tanh(z), affine(network.head, torch.tanh(z))


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(BATCH, FEATURES), torch.randn(BATCH, OUTPUTS)


def plain(network: Any, batch: tuple[Tensor, Tensor]):
    first, _, y = trunk(network, batch[0])
    return mse_loss(y, batch[1]), {"first": one(first), "head": one(y)}


class WithHiddenStates(Trunk):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)

    def forward(self, x: Tensor) -> Any:
        hidden = self.hidden(x)
        normed = self.norm(hidden)
        return self.head(normed), (hidden, normed)


def layer_norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt()
    return scaled * layer.weight + layer.bias


def hidden_states(network: Any, batch: Any, uses_them: bool = False):
    first = affine(network.first, batch[0])
    normed = layer_norm(network.norm, torch.tanh(first))
    y = affine(network.head, normed)
    layers = {"first": one(first), "head": one(y)}
    if uses_them:
        return mse_loss(y, batch[1]) + 0.1 * normed.square().mean(), {**layers, "norm": one(normed)}
    return mse_loss(y, batch[1]), layers


def uses_hidden_states(network: nn.Module, batch: Any) -> Tensor:
    y, (_, normed) = network(batch[0])
    return F.mse_loss(y, batch[1]) + 0.1 * normed.square().mean()


def mse_of_first(network: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(network(batch[0])[0], batch[1])


class WithAttention(Trunk):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(HIDDEN, 3), nn.Linear(HIDDEN, 3)

    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x)
        weights = (self.query(h) @ self.key(h).mT).softmax(-1)
        return self.head(weights @ h), weights


def attention(network: Any, batch: Any):
    first = affine(network.first, batch[0])
    h = torch.tanh(first)
    scores = (affine(network.query, h) @ affine(network.key, h).mT).exp()
    y = affine(network.head, scores / scores.sum(-1, keepdim=True) @ h)
    return mse_loss(y, batch[1]), {"first": one(first), "head": one(y)}


class WithGates(Trunk):
    """Two linear experts, weighed by a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.left, self.right = (nn.Linear(HIDDEN, n) for n in (2, HIDDEN, HIDDEN))

    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x)
        gates = self.gate(h).softmax(-1)
        mixed = gates[:, :1] * self.left(h) + gates[:, 1:] * self.right(h)
        return self.head(mixed), gates


def balanced_gates(network: nn.Module, batch: Any) -> Tensor:
    y, gates = network(batch[0])
    return F.mse_loss(y, batch[1]) + gates.mean(0).square().sum()


def gated(network: Any, batch: Any, balanced: bool = False):
    first = affine(network.first, batch[0])
    h = torch.tanh(first)
    z = affine(network.gate, h)
    gates = z.exp() / z.exp().sum(-1, keepdim=True)
    y = affine(network.head, gates[:, :1] * affine(network.left, h) + gates[:, 1:] * affine(network.right, h))
    layers = {"first": one(first), "head": one(y)}
    if balanced:
        return mse_loss(y, batch[1]) + gates.mean(0).square().sum(), {**layers, "gate": one(z)}
    return mse_loss(y, batch[1]), layers


class WithScale(Trunk):
    def forward(self, x: Tensor) -> Any:
        scale = x.abs().mean(1, keepdim=True)
        return {"loc": super().forward(x / scale), "scale": scale}


def rescaled(network: nn.Module, batch: Any) -> Tensor:
    found = network(batch[0])
    return F.mse_loss(found["loc"] * found["scale"], batch[1])


def scaled(network: Any, batch: Any):
    scale = batch[0].abs().mean(1, keepdim=True)
    first, _, y = trunk(network, batch[0] / scale)
    return mse_loss(y * scale, batch[1]), {"first": one(first), "head": one(y)}


class WithMask(Trunk):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), (x[:, :1] > 0).to(x.dtype)


def masked_loss(network: nn.Module, batch: Any) -> Tensor:
    y, mask = network(batch[0])
    return ((y - batch[1]).square() * mask).mean()


def masked(network: Any, batch: Any):
    first, _, y = trunk(network, batch[0])
    return ((y - batch[1]) ** 2 * (batch[0][:, :1] > 0)).mean(), {"first": one(first), "head": one(y)}


class Flow(nn.Module):
    """Invertible linear maps, which return the logarithm of their volume beside the values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)

    def forward(self, x: Tensor) -> Any:
        z = self.first(x)
        volume = torch.slogdet(self.first.weight)[1] + torch.slogdet(self.head.weight)[1]
        slopes = torch.where(z > 0, torch.zeros_like(z), torch.full_like(z, 0.1).log())
        return self.head(F.leaky_relu(z, 0.1)), volume.expand(len(x)) + slopes.sum(1)


def flow_loss(network: nn.Module, batch: Any) -> Tensor:
    y, volume = network(batch[0])
    return (0.5 * y.square().sum(1) - volume).mean()


def flow(network: Any, batch: Any):
    z = affine(network.first, batch[0])
    y = affine(network.head, torch.where(z > 0, z, 0.1 * z))
    volumes = [torch.linalg.det(layer.weight).abs().log() for layer in (network.first, network.head)]
    slopes = (z <= 0).sum(1) * torch.tensor(0.1, dtype=z.dtype).log()
    return (0.5 * (y**2).sum(1) - sum(volumes) - slopes).mean(), {"first": one(z), "head": one(y)}


class SampleLosses(Trunk):
    def forward(self, x: Tensor, target: Tensor | None = None) -> Any:
        y = super().forward(x)
        return (y, None) if target is None else (y, (y - target).square().mean(1))


def mean_of_losses(network: nn.Module, batch: Any) -> Tensor:
    return network(*batch)[1].mean()


@dataclass
class Prediction:
    prediction: Tensor
    attention: Tensor | None = None
    hidden: tuple[Tensor, ...] = ()
    loss: Tensor | None = None
    cache: Any = field(init=False, repr=False)  # never set


class InMapping(WithHiddenStates):
    def forward(self, x: Tensor) -> Any:
        y, states = super().forward(x)
        return UserDict(prediction=y, hidden=states)


class InDataclass(WithHiddenStates):
    def forward(self, x: Tensor) -> Any:
        y, states = super().forward(x)
        return Prediction(y, None, states)


class Labelled(WithHiddenStates):
    """Computes its loss where it is given labels."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        y, states = super().forward(x)
        return Prediction(y, None, states, None if labels is None else F.mse_loss(y.squeeze(), labels.squeeze()))


class LabelledTuple(WithHiddenStates):
    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        y, states = super().forward(x)
        return (y, states) if labels is None else (nn.MSELoss()(y.view(-1), labels.view(-1)), y, states)


class WithProbabilities(Trunk):
    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return y, torch.sigmoid(y)


def mse_beside_tanh(network: nn.Module, batch: Any) -> Tensor:
    y = network(batch[0])
    torch.tanh(y)  # for a table of results, say
    return F.mse_loss(y, batch[1])


class TwoHeads(Trunk):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x)
        return {"first": self.head(h), "second": self.second(h)}


def both_heads(network: nn.Module, batch: Any) -> Tensor:
    found = network(batch[0])
    return F.mse_loss(found["first"], batch[1]) + F.l1_loss(found["second"], batch[1])


def two_heads(network: Any, batch: Any, both: bool = True):
    first, h, y = trunk(network, batch[0])
    second = affine(network.second, h)
    layers = {"first": one(first), "head": one(y)}
    if both:
        return mse_loss(y, batch[1]) + (second - batch[1]).abs().mean(), {**layers, "second": one(second)}
    return mse_loss(y, batch[1]), layers


class Squashed(Trunk):
    def __init__(self, squash: Any) -> None:
        super().__init__()
        self.squash = squash

    def forward(self, x: Tensor) -> Any:
        return self.squash(super().forward(x))


def squashed(network: Any, batch: Any, squash: Any = lambda y: 1 / (1 + (-y).exp())):
    first, _, y = trunk(network, batch[0])
    return mse_loss(squash(y), batch[1]), {"first": one(first), "head": one(y)}


def mse(network: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(network(batch[0]), batch[1])


def case(name: str, network: Any, step: Any, reference: Any = plain, **further: Any) -> LayerCase:
    return LayerCase(name, network, batch, step, reference, **further)


OUTPUT_CASES = [
    case("prediction alone", Trunk, mse),
    case("hidden states beside the prediction", WithHiddenStates, mse_of_first, hidden_states),
    case(
        "hidden states that the loss uses",
        WithHiddenStates,
        uses_hidden_states,
        partial(hidden_states, uses_them=True),
        outputs=("head", "norm"),
    ),
    case("attention maps", WithAttention, mse_of_first, attention),
    case("gate weights", WithGates, mse_of_first, gated),
    case(
        "gate weights that the loss uses",
        WithGates,
        balanced_gates,
        partial(gated, balanced=True),
        outputs=("head", "gate"),
    ),
    LayerCase(
        "scale made of data",
        WithScale,
        lambda: (100 * torch.randn(BATCH, FEATURES), 100 * torch.randn(BATCH, OUTPUTS)),
        rescaled,
        scaled,
    ),
    case("mask", WithMask, masked_loss, masked),
    case("log-determinant", Flow, flow_loss, flow),
    case("losses of samples", SampleLosses, mean_of_losses),
    case(
        "mapping that is no dict",
        InMapping,
        lambda network, batch: F.mse_loss(network(batch[0])["prediction"], batch[1]),
        hidden_states,
    ),
    case(
        "dataclass with an unset field",
        InDataclass,
        lambda network, batch: F.mse_loss(network(batch[0]).prediction, batch[1]),
        hidden_states,
    ),
    case("loss inside, dataclass", Labelled, lambda network, batch: network(*batch).loss, hidden_states),
    case("loss inside, tuple", LabelledTuple, lambda network, batch: network(*batch)[0], hidden_states),
    case("two heads", TwoHeads, both_heads, two_heads, outputs=("head", "second")),
    case(
        "head that the loss does not reach",
        TwoHeads,
        lambda network, batch: F.mse_loss(network(batch[0])["first"], batch[1]),
        partial(two_heads, both=False),
    ),
    case("probabilities beside the prediction", WithProbabilities, mse_of_first),
    case("a nonlinearity that the loss does not use", Trunk, mse_beside_tanh),
    case("sigmoid at the end", partial(Squashed, nn.Sigmoid()), mse, squashed),
    case(
        "softmax at the end",
        partial(Squashed, nn.Softmax(-1)),
        mse,
        partial(squashed, squash=lambda y: y.exp() / y.exp().sum(-1, keepdim=True)),
    ),
]
