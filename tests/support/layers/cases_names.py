"""What a layer is called: modules through those that only hand on, parameters, places in the code."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.layers.case import LayerCase, affine, cross_entropy, mse_loss, one, passes
from tests.support.layers.cases_outputs import FEATURES, HIDDEN, OUTPUTS, batch, mse
from tests.support.layers.cases_passes import pointwise


class Handed(nn.Module):
    """A convolution, something that hands its values on, a ReLU, and a head."""

    def __init__(self, hand: Callable[[Tensor], Tensor], side: int = 2) -> None:
        super().__init__()
        self.conv1, self.hand, self.head = nn.Conv2d(2, 3, 1), hand, nn.Linear(3 * side**2, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hand(self.conv1(x))).flatten(1))


def handed(hand: Callable[[Tensor], Tensor], network: Any, batch: Any):
    z = hand(pointwise(network.conv1, batch[0]))
    y = affine(network.head, (z * (z > 0)).reshape(len(z), -1))
    return mse_loss(y, batch[1]), {"conv1": one(z), "head": one(y)}


def quarters(z: Tensor) -> Tensor:
    """The four pixels of each square of two by two."""
    return torch.stack([z[..., i::2, j::2] for i in (0, 1) for j in (0, 1)])


def largest(z: Tensor) -> Tensor:
    return quarters(z).max(0).values


def average(z: Tensor) -> Tensor:
    return quarters(z).mean(0)


def same(z: Tensor) -> Tensor:
    return z


def rounded(z: Tensor) -> Tensor:
    """To sixteenths, with the gradient of what is not rounded."""
    return z + ((16 * z).round() / 16 - z).detach()


def framed(z: Tensor) -> Tensor:
    zeros = z.new_zeros(*z.shape[:2], 6, 6)
    zeros[..., 1:-1, 1:-1] = z
    return zeros


# what hands on, the same written out, and the side of the map that comes of it
HANDS: dict[str, tuple[Callable[[], Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor], int]] = {
    "F.max_pool2d": (lambda: lambda z: F.max_pool2d(z, 2), largest, 2),
    "F.max_pool2d, keywords": (
        lambda: lambda z: F.max_pool2d(z, kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False),
        largest,
        2,
    ),
    "F.max_pool2d, stride=": (lambda: lambda z: F.max_pool2d(z, 2, stride=2), largest, 2),
    "torch.max_pool2d": (lambda: lambda z: torch.max_pool2d(z, 2), largest, 2),
    "MaxPool2d": (lambda: nn.MaxPool2d(2), largest, 2),
    "MaxPool2d, stride=": (lambda: nn.MaxPool2d(kernel_size=2, stride=2), largest, 2),
    "max pooling with indices": (lambda: lambda z: F.max_pool2d(z, 2, return_indices=True)[0], largest, 2),
    "F.avg_pool2d": (lambda: lambda z: F.avg_pool2d(z, 2, stride=2), average, 2),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d(2), average, 2),
    "Identity": (nn.Identity, same, 4),
    "Dropout": (lambda: nn.Dropout(0.0), same, 4),
    "F.dropout": (lambda: lambda z: F.dropout(z, 0.0, training=True), same, 4),
    "F.pad": (lambda: lambda z: F.pad(z, (1, 1, 1, 1)), framed, 6),
    "ZeroPad2d": (lambda: nn.ZeroPad2d(1), framed, 6),
    "fake quantisation": (lambda: lambda z: torch.fake_quantize_per_tensor_affine(z, 1 / 16, 0, -128, 127), rounded, 4),
    "several": (
        lambda: nn.Sequential(nn.Identity(), nn.Dropout(0.0), nn.MaxPool2d(2), nn.Flatten(2)),
        lambda z: largest(z).flatten(2),
        2,
    ),
    "views": (
        lambda: lambda z: z.flatten(1).view(len(z), 3, 4, 4).contiguous().permute(0, 2, 3, 1).permute(0, 3, 1, 2),
        same,
        4,
    ),
}


def hand_case(name: str) -> LayerCase:
    make, written_out, side = HANDS[name]
    return LayerCase(
        f"handed on by {name}",
        lambda: Handed(make(), side),
        lambda: (torch.randn(3, 2, 4, 4), torch.randn(3, OUTPUTS)),
        mse,
        partial(handed, written_out),
        reductions=("mean",) if name == "several" else ("mean", "sum", "squared_mean"),
    )


class Mix(nn.Module):
    """Gives the sum of two linear maps: its own output, not that of one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(FEATURES, HIDDEN), nn.Linear(FEATURES, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) + self.right(x)


class Adapted(nn.Module):
    """Gives what its inner linear map gives, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.drop = nn.Linear(FEATURES, HIDDEN), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.inner(x))


class Within(nn.Module):
    def __init__(self, block: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.block, self.head = block(), nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.block(x)))


def within(name: str, network: Any, batch: Any):
    block = network.block
    if name == "block":
        z = affine(block.left, batch[0]) + batch[0] @ block.right.weight.T
    else:
        z = affine(block.inner, batch[0])
    y = affine(network.head, z * (z > 0))
    return mse_loss(y, batch[1]), {name: one(z), "head": one(y)}


class Weights(nn.Module):
    """Parameters of its own, given to a function."""

    def __init__(self, shape: tuple[int, ...], apply: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(HIDDEN))
        self.head, self.apply_weights = nn.Linear(HIDDEN, OUTPUTS), apply

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.apply_weights(self, x)))


def weights(transposed: bool, with_bias: bool, network: Any, batch: Any):
    w = network.w.T if transposed else network.w
    z = torch.stack([(row[:, None] * w).sum(0) for row in batch[0]]) + with_bias * network.b
    y = affine(network.head, torch.tanh(z))
    return mse_loss(y, batch[1]), {"w": one(z), "head": one(y)}


ROWS, COLUMNS = (HIDDEN, FEATURES), (FEATURES, HIDDEN)
PRODUCTS: dict[str, tuple[tuple[int, ...], Callable[[Any, Tensor], Tensor], bool]] = {
    "F.linear": (ROWS, lambda net, x: F.linear(x, net.w, net.b), True),
    "F.linear without bias": (ROWS, lambda net, x: F.linear(x, net.w), False),
    "x @ w": (COLUMNS, lambda net, x: x @ net.w, False),
    "x @ w + b": (COLUMNS, lambda net, x: x @ net.w + net.b, True),
    "x @ w.T + b": (ROWS, lambda net, x: x @ net.w.T + net.b, True),
    "matmul": (COLUMNS, lambda net, x: torch.matmul(x, net.w) + net.b, True),
    "addmm": (COLUMNS, lambda net, x: torch.addmm(net.b, x, net.w), True),
    "baddbmm": (COLUMNS, lambda net, x: torch.baddbmm(net.b[None, None], x[None], net.w[None])[0], True),
}


class Owner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(HIDDEN, FEATURES))


class OwnedWeight(nn.Module):
    """Gives a function the weight of a module that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.owner, self.head = Owner(), nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(F.linear(x, self.owner.weight)))


def owned_weight(network: Any, batch: Any):
    z = batch[0] @ network.owner.weight.T
    y = affine(network.head, z * (z > 0))
    return mse_loss(y, batch[1]), {"owner": one(z), "head": one(y)}


class Tied(nn.Module):
    """A head with the weight of the embedding: as a function, or as a module that shares it."""

    def __init__(self, by_module: bool) -> None:
        super().__init__()
        self.embed, self.first = nn.Embedding(6, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.by_module = by_module
        if by_module:
            self.head = nn.Linear(HIDDEN, 6, bias=False)
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = torch.tanh(self.first(self.embed(tokens)))
        return self.head(h) if self.by_module else F.linear(h, self.embed.weight)


def tied(network: Any, batch: Any):
    first = affine(network.first, network.embed.weight[batch[0]])
    z = torch.tanh(first) @ network.embed.weight.T
    return cross_entropy(z, batch[1]), {"first": one(first), ("head" if network.by_module else "embed"): one(z)}


class Residual(nn.Module):
    """A block whose last nonlinearity is given a sum."""

    def __init__(self, act: bool) -> None:
        super().__init__()
        self.inner, self.act = nn.Linear(HIDDEN, HIDDEN), nn.ReLU() if act else None

    def forward(self, x: Tensor) -> Tensor:
        total = x + self.inner(x)
        return F.relu(total) if self.act is None else self.act(total)


class Blocks(nn.Module):
    """An embedding, residual blocks, and a head."""

    def __init__(self, blocks: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Linear(FEATURES, HIDDEN), blocks(), nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x)))


class Shared(nn.Module):
    """One residual block, applied three times."""

    def __init__(self, act: bool) -> None:
        super().__init__()
        self.one = Residual(act)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.one(x)
        return x


class Looped(nn.Module):
    """Two sums in a loop of one forward."""

    def __init__(self, act: bool) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(2))
        self.act = nn.ReLU() if act else None

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.inner:
            total = x + layer(x)
            x = F.relu(total) if self.act is None else self.act(total)
        return x


def residual(places: list[str], maps: Callable[[Any], list[Any]], network: Any, batch: Any):
    x = affine(network.embed, batch[0])
    found: dict[str, list[Tensor]] = {}
    for place, layer in zip(places, maps(network), strict=True):
        z = x + affine(layer, x)
        found.setdefault(place, []).append(z)
        x = z * (z > 0)
    y = affine(network.head, x)
    return mse_loss(y, batch[1]), {**{place: passes(zs) for place, zs in found.items()}, "head": one(y)}


def residual_case(name: str, make: Callable[[bool], nn.Module], places: list[str], maps: Any) -> list[LayerCase]:
    cases = []
    for act in (False, True):
        called = [place.replace("relu", "act") if act else place for place in places]
        by = "module" if act else "function"
        network = partial(Blocks, partial(make, act))
        cases.append(LayerCase(f"{name}, {by}", network, batch, mse, partial(residual, called, maps)))
    return cases


NAME_CASES = [
    LayerCase("sum that a module gives", partial(Within, Mix), batch, mse, partial(within, "block")),
    LayerCase("module within a module", partial(Within, Adapted), batch, mse, partial(within, "block.inner")),
    *(hand_case(name) for name in HANDS),
    *(
        LayerCase(
            f"parameter, {name}",
            partial(Weights, shape, apply),
            batch,
            mse,
            partial(weights, shape == ROWS, with_bias),
        )
        for name, (shape, apply, with_bias) in PRODUCTS.items()
    ),
    LayerCase("weight of another module", OwnedWeight, batch, mse, owned_weight),
    *(
        LayerCase(
            f"tied weight, {'module' if by_module else 'function'}",
            partial(Tied, by_module),
            lambda: (torch.randint(6, (4,)), torch.randint(6, (4,))),
            lambda network, batch: F.cross_entropy(network(batch[0]), batch[1]),
            tied,
            outputs=("head" if by_module else "embed",),
        )
        for by_module in (False, True)
    ),
    *residual_case("residual sum", Residual, ["block.relu"], lambda net: [net.block.inner]),
    *residual_case(
        "residual sum, block in depth", Shared, ["block.one.relu"] * 3, lambda net: [net.block.one.inner] * 3
    ),
    *residual_case("residual sums in a loop", Looped, ["block.relu", "block.relu:1"], lambda net: net.block.inner),
]
