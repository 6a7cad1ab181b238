"""The same neurons evaluated several times: loops, levels, several networks' calls, shared inputs."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.layers.case import LayerCase, affine, mse_loss, one, passes
from tests.support.layers.cases_distributions import softplus
from tests.support.layers.cases_logits import mlp, mlp_potentials
from tests.support.layers.cases_outputs import BATCH, FEATURES, HIDDEN, OUTPUTS, Trunk, batch, mse, trunk


class Deep(nn.Module):
    """One block applied three times."""

    def __init__(self, residual: bool) -> None:
        super().__init__()
        self.embed, self.block, self.head = (
            nn.Linear(FEATURES, HIDDEN),
            nn.Linear(HIDDEN, HIDDEN),
            nn.Linear(HIDDEN, OUTPUTS),
        )
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for _ in range(3):
            y = torch.tanh(self.block(x))
            x = x + y if self.residual else y
        return self.head(x)


def deep(network: Any, batch: Any):
    x, found = affine(network.embed, batch[0]), []
    for _ in range(3):
        found.append(affine(network.block, x))
        x = x * network.residual + torch.tanh(found[-1])
    y = affine(network.head, x)
    return mse_loss(y, batch[1]), {"block": passes(found), "head": one(y)}


class Slope(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, time: float, y: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(y))) * (1 + time)


class Evolved(nn.Module):
    """Euler's steps along a network, and a head."""

    def __init__(self, steps: int = 4) -> None:
        super().__init__()
        self.slope, self.head, self.steps = Slope(), nn.Linear(HIDDEN, OUTPUTS), steps
        self.embed = nn.Linear(FEATURES, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        for step in range(self.steps):
            y = y + self.slope(step / self.steps, y) / self.steps
        return self.head(y)


def evolved(network: Any, batch: Any):
    y, found = affine(network.embed, batch[0]), []
    for step in range(network.steps):
        found.append(affine(network.slope.first, y))
        slope = affine(network.slope.second, torch.tanh(found[-1])) * (1 + step / network.steps)
        y = y + slope / network.steps
    out = affine(network.head, y)
    return mse_loss(out, batch[1]), {"slope.first": passes(found), "head": one(out)}


class Cell(nn.Module):
    """A recurrent cell of two linear maps, whose sum is the potential."""

    def __init__(self) -> None:
        super().__init__()
        self.of_input, self.of_state = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, HIDDEN, bias=False)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.of_input(x) + self.of_state(h))


class Unrolled(nn.Module):
    """Runs a cell over sequences of different lengths, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = Cell(), nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, sequences: list[Tensor]) -> Tensor:
        last = []
        for x in sequences:
            h = x.new_zeros(HIDDEN)
            for row in x:
                h = self.cell(row, h)
            last.append(h)
        return self.head(torch.stack(last))


def unrolled(network: Any, batch: Any):
    found, last = [], []
    for x in batch[0]:
        h = torch.zeros(HIDDEN, dtype=x.dtype)
        for row in x:
            found.append(affine(network.cell.of_input, row) + network.cell.of_state.weight @ h)
            h = torch.tanh(found[-1])
        last.append(h)
    y = affine(network.head, torch.stack(last))
    return mse_loss(y, batch[1]), {"cell.tanh": passes(found), "head": one(y)}


class UnrolledBatches(Unrolled):
    """Runs a cell over batches of sequences, of several lengths."""

    def forward(self, batches: list[Tensor]) -> Tensor:
        last = []
        for x in batches:
            h = x.new_zeros(len(x), HIDDEN)
            for t in range(x.shape[1]):
                h = self.cell(x[:, t], h)
            last.append(h)
        return self.head(torch.cat(last))


def unrolled_batches(network: Any, batch: Any):
    found, last = [], []
    for x in batch[0]:
        h = torch.zeros(len(x), HIDDEN, dtype=x.dtype)
        for t in range(x.shape[1]):
            found.append(affine(network.cell.of_input, x[:, t]) + h @ network.cell.of_state.weight.T)
            h = torch.tanh(found[-1])
        last.append(h)
    y = affine(network.head, torch.cat(last))
    return mse_loss(y, batch[1]), {"cell.tanh": passes(found), "head": one(y)}


class Levels(nn.Module):
    """A head that maps of several sizes share."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 3, 2, stride=2)
        self.head = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = torch.tanh(self.stem(x))
        return [self.head(level) for level in (fine, self.down(fine))]


def levels_loss(network: nn.Module, batch: Any) -> Tensor:
    return sum(F.mse_loss(found, target) for found, target in zip(network(batch[0]), batch[1:], strict=True))


def pointwise(layer: Any, x: Tensor) -> Tensor:
    """A convolution with kernels of one pixel."""
    return torch.einsum("oi,bihw->bohw", layer.weight[:, :, 0, 0], x) + layer.bias[:, None, None]


def levels(network: Any, batch: Any):
    stem = pointwise(network.stem, batch[0])
    fine = torch.tanh(stem)
    kernels = network.down.weight
    coarse = sum(
        torch.einsum("oi,bihw->bohw", kernels[:, :, i, j], fine[:, :, i::2, j::2]) for i in (0, 1) for j in (0, 1)
    )
    maps = [fine, coarse + network.down.bias[:, None, None]]
    hidden = [pointwise(network.head[0], level) for level in maps]
    found = [pointwise(network.head[2], z * (z > 0)) for z in hidden]
    loss = sum(mse_loss(y, target) for y, target in zip(found, batch[1:], strict=True))
    return loss, {"stem": one(stem), "head.0": passes(hidden), "head.2": passes(found)}


def pair() -> tuple[Tensor, Tensor]:
    return torch.randn(BATCH, FEATURES), torch.randn(BATCH, FEATURES)


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = mlp()

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return self.tower(left), self.tower(right)


def siamese_loss(network: nn.Module, batch: Any) -> Tensor:
    left, right = network(*batch)
    return F.mse_loss(left, right)


def siamese(network: Any, batch: Any):
    (first, left), (second, right) = (mlp_potentials(network.tower, x) for x in batch)
    return mse_loss(left, right), {"tower.0": passes([first, second]), "tower.2": passes([left, right])}


def called_twice(network: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(network(batch[0]), network(batch[1]))


def called_twice_potentials(network: Any, batch: Any):
    (first, left), (second, right) = (mlp_potentials(network, x) for x in batch)
    return mse_loss(left, right), {"0": passes([first, second]), "2": passes([left, right])}


class Adversaries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator, self.discriminator = mlp(FEATURES), mlp(1)


def discriminate(network: Any, batch: Any) -> Tensor:
    real, noise = batch
    with torch.no_grad():
        fake = network.generator(noise)
    return (F.softplus(-network.discriminator(real)) + F.softplus(network.discriminator(fake))).mean()


def discriminated(network: Any, batch: Any):
    fake = mlp_potentials(network.generator, batch[1])[1].detach()
    (first, real), (second, made) = (mlp_potentials(network.discriminator, x) for x in (batch[0], fake))
    loss = (softplus(-real) + softplus(made)).mean()
    return loss, {"discriminator.0": passes([first, second]), "discriminator.2": passes([real, made])}


def generate(network: Any, batch: Any) -> Tensor:
    return F.softplus(-network.discriminator(network.generator(batch[1]))).mean()


def generated(network: Any, batch: Any):
    hidden, fake = mlp_potentials(network.generator, batch[1])
    first, made = mlp_potentials(network.discriminator, fake)
    layers = {"generator.0": one(hidden), "discriminator.0": one(first), "discriminator.2": one(made)}
    return softplus(-made).mean(), layers


class Conditioned(nn.Module):
    """One embedding that each block passes through SiLU: by a function, or by a module of its own."""

    def __init__(self, by_module: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, HIDDEN)
        self.blocks = nn.ModuleList(ConditionedBlock(by_module) for _ in range(3))
        self.head = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        condition = self.embed(x)
        h = x.new_ones(len(x), HIDDEN)
        for block in self.blocks:
            h = block(h, condition)
        return self.head(h)


class ConditionedBlock(nn.Module):
    def __init__(self, by_module: bool) -> None:
        super().__init__()
        self.act = nn.SiLU() if by_module else None
        self.shift, self.inner = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        shift = self.shift(F.silu(condition) if self.act is None else self.act(condition))
        return h + torch.relu(self.inner(h)) * shift


def conditioned(network: Any, batch: Any):
    embed = affine(network.embed, batch[0])
    h, found = torch.ones(len(batch[0]), HIDDEN, dtype=embed.dtype), {"embed": one(embed)}
    for number, block in enumerate(network.blocks):
        z = affine(block.inner, h)
        found[f"blocks.{number}.inner"] = one(z)
        h = h + z * (z > 0) * affine(block.shift, embed / (1 + (-embed).exp()))
    y = affine(network.head, h)
    return mse_loss(y, batch[1]), {**found, "head": one(y)}


class TwoNonlinearities(Trunk):
    """One potential that two nonlinearities read."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        return self.head(torch.tanh(z) + torch.relu(z) * torch.sigmoid(z))


def two_nonlinearities(network: Any, batch: Any):
    z = affine(network.first, batch[0])
    y = affine(network.head, torch.tanh(z) + z * (z > 0) / (1 + (-z).exp()))
    return mse_loss(y, batch[1]), {"first": one(z), "head": one(y)}


def in_parts(network: nn.Module, batch: Any) -> Tensor:
    """The batch in two calls of different size."""
    found = torch.cat([network(batch[0][:1]), network(batch[0][1:])])
    return F.mse_loss(found, batch[1])


def in_two_calls(network: Any, batch: Any):
    first, _, y = trunk(network, batch[0])
    return mse_loss(y, batch[1]), {"first": passes([first[:1], first[1:]]), "head": passes([y[:1], y[1:]])}


def sequences() -> tuple[list[Tensor], Tensor]:
    return [torch.randn(length, FEATURES) for length in (3, 1, 4)], torch.randn(3, OUTPUTS)


def sequence_batches() -> tuple[list[Tensor], Tensor]:
    return [torch.randn(2, length, FEATURES) for length in (3, 1)], torch.randn(4, OUTPUTS)


def maps() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, 2, 4, 4), torch.randn(2, 2, 4, 4), torch.randn(2, 2, 2, 2)


PASS_CASES = [
    LayerCase("block in depth", partial(Deep, False), batch, mse, deep),
    LayerCase("residual block in depth", partial(Deep, True), batch, mse, deep),
    LayerCase("function of an ODE", Evolved, batch, mse, evolved),
    LayerCase("function of an ODE, more steps", partial(Evolved, 7), batch, mse, evolved),
    LayerCase("cell over single sequences", Unrolled, sequences, mse, unrolled, reductions=("mean",)),
    LayerCase("cell over batches of sequences", UnrolledBatches, sequence_batches, mse, unrolled_batches),
    LayerCase(
        "head of several levels",
        Levels,
        maps,
        levels_loss,
        levels,
        outputs=("head.2",),
        reductions=("mean", "sum"),
    ),
    LayerCase(
        "siamese",
        Siamese,
        pair,
        siamese_loss,
        siamese,
        outputs=("tower.2",),
        alone=lambda network, batch: network(*batch),
    ),
    LayerCase("network called twice", mlp, pair, called_twice, called_twice_potentials, outputs=("2",), alone=None),
    LayerCase(
        "discriminator on real and fake",
        Adversaries,
        pair,
        discriminate,
        discriminated,
        outputs=("discriminator.2",),
        alone=None,
        validates=False,
    ),
    LayerCase(
        "generator through the discriminator",
        Adversaries,
        pair,
        generate,
        generated,
        outputs=("discriminator.2",),
        alone=None,
    ),
    LayerCase("embedding through SiLU in each block", partial(Conditioned, False), batch, mse, conditioned),
    LayerCase("embedding through SiLU modules", partial(Conditioned, True), batch, mse, conditioned),
    LayerCase("two nonlinearities of one tensor", TwoNonlinearities, batch, mse, two_nonlinearities),
    LayerCase("batch in two calls", Trunk, batch, in_parts, in_two_calls, alone=None),
]
