"""Mixtures of experts, of modules and in stacked parameters, and cells of recurrent networks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.layers.case import LayerCase, affine, mse_loss, one, passes
from tests.support.layers.cases_outputs import FEATURES, OUTPUTS, mse
from tests.support.unrolled import step as unrolled_step

ROWS, EXPERTS, WIDE = 6, 3, 4
ROUTES = (0, 2, 0, 0, 2, 0)  # expert 1 has no sample


def routed_batch() -> tuple[Tensor, Tensor]:
    return torch.randn(ROWS, FEATURES), torch.randn(ROWS, OUTPUTS)


def rows_of(expert: int) -> list[int]:
    return [row for row, route in enumerate(ROUTES) if route == expert]


class Mixture(nn.Module):
    """Routes rows to experts, which come of an argument."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.experts, self.head = experts, nn.Linear(FEATURES, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.experts(x))


class ExpertModules(nn.Module):
    def __init__(self, calls_all: bool) -> None:
        super().__init__()
        self.each = nn.ModuleList(Expert() for _ in range(EXPERTS))
        self.calls_all = calls_all

    def forward(self, x: Tensor) -> Tensor:
        result = torch.zeros_like(x)
        for number, expert in enumerate(self.each):
            rows = torch.tensor(rows_of(number), dtype=torch.long)
            if len(rows) or self.calls_all:
                result = result.index_add(0, rows, expert(x[rows]))
        return result


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(FEATURES, WIDE), nn.Linear(WIDE, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.up(x)))


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


def expert_modules(network: Any, batch: Any):
    x, target = batch
    result, layers = [None] * ROWS, {}
    for number in (0, 2):
        expert = network.experts.each[number]
        z = affine(expert.up, x[rows_of(number)])
        layers[f"experts.each.{number}.up"] = one(z)
        for row, value in zip(rows_of(number), affine(expert.down, z * sigmoid(z)), strict=True):
            result[row] = value
    y = affine(network.head, torch.stack(result))
    return mse_loss(y, target), {**layers, "head": one(y)}


class StackedExperts(nn.Module):
    """Experts in stacked parameters, one at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDE, FEATURES))
        self.down = nn.Parameter(torch.randn(EXPERTS, FEATURES, WIDE))

    def forward(self, x: Tensor) -> Tensor:
        result = torch.zeros_like(x)
        for number in range(EXPERTS):
            rows = torch.tensor(rows_of(number), dtype=torch.long)
            if len(rows):
                h = F.silu(F.linear(x[rows], self.up[number]))
                result = result.index_add(0, rows, F.linear(h, self.down[number]))
        return result


def stacked_experts(network: Any, batch: Any):
    x, target = batch
    up, down = network.experts.up, network.experts.down
    z = torch.stack([up[route] @ row for route, row in zip(ROUTES, x, strict=True)])
    h = torch.stack([down[route] @ row for route, row in zip(ROUTES, z * sigmoid(z), strict=True)])
    y = affine(network.head, h)
    return mse_loss(y, target), {"experts.up": one(z), "head": one(y)}


class BatchedExperts(nn.Module):
    """All experts see all rows, by a product of batches of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(EXPERTS, FEATURES, WIDE))
        self.down = nn.Parameter(torch.randn(EXPERTS, WIDE, FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(torch.bmm(x.expand(EXPERTS, *x.shape), self.up))
        return torch.bmm(h, self.down).mean(0)


def batched_experts(network: Any, batch: Any):
    x, target = batch
    up, down = network.experts.up, network.experts.down
    z = torch.stack([x @ up[expert] for expert in range(EXPERTS)])
    h = z * (z > 0)
    y = affine(network.head, sum(h[expert] @ down[expert] for expert in range(EXPERTS)) / EXPERTS)
    return mse_loss(y, target), {"experts.up": one(z), "head": one(y)}


class ClampedExperts(nn.Module):
    """Gate and value interleaved in one product, both kept within limits."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(EXPERTS, FEATURES, 2 * WIDE))
        self.b = nn.Parameter(torch.randn(EXPERTS, 2 * WIDE))
        self.down = nn.Parameter(torch.randn(EXPERTS, WIDE, FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        result = torch.zeros_like(x)
        for i in sorted(set(ROUTES)):
            rows = torch.tensor(rows_of(i))
            h = x[rows] @ self.w[i] + self.b[i]
            gate, up = h[..., ::2], h[..., 1::2]
            gate = gate.clamp(min=None, max=30.0)
            up = up.clamp(min=-30.0, max=30.0)
            h = (up + 1) * (gate * torch.sigmoid(gate * 1.702))
            result = result.index_add(0, rows, h @ self.down[i])
        return result


def clamped_experts(network: Any, batch: Any):
    x, target = batch
    experts = network.experts
    gates, values = [], []
    for route, row in zip(ROUTES, x, strict=True):
        z = row @ experts.w[route] + experts.b[route]
        gates.append(z[::2])
        values.append(((z[1::2] + 1) * z[::2] * sigmoid(1.702 * z[::2])) @ experts.down[route])
    gate = torch.stack(gates)
    assert gate.abs().max() < 30
    y = affine(network.head, torch.stack(values))
    return mse_loss(y, target), {"experts.w": one(gate), "head": one(y)}


LENGTH = 5


class Sequences(nn.Module):
    """A recurrent layer in one of three forms with the same weights, and a head on its last state."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        whole = nn.LSTM(FEATURES, 3, batch_first=True)
        if form == "whole":
            self.cell: nn.Module = whole
        else:
            self.cell = nn.LSTMCell(FEATURES, 3) if form == "cell" else WrittenCell()
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(self.cell, name).data.copy_(getattr(whole, f"{name}_l0").data)
        self.head = nn.Linear(3, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "whole":
            return self.head(self.cell(x)[0][:, -1])
        h = c = x.new_zeros(len(x), 3)
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
        return self.head(h)


class WrittenCell(nn.Module):
    """An LSTM cell written out, its potential the sum of two products."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in (
            ("weight_ih", (12, FEATURES)),
            ("weight_hh", (12, 3)),
            ("bias_ih", (12,)),
            ("bias_hh", (12,)),
        ):
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        gates = F.linear(x, self.weight_ih, self.bias_ih) + F.linear(h, self.weight_hh, self.bias_hh)
        i, f, g, o = gates.chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


LAYER_OF_FORM = {"whole": "cell", "cell": "cell", "sum": "?cell"}


def recurrent(network: Any, batch: Any):
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    suffix = "_l0" if network.form == "whole" else ""
    weights = {name: getattr(network.cell, name + suffix) for name in names}
    h = c = torch.zeros(len(batch[0]), 3, dtype=batch[0].dtype)
    found = []
    for t in range(batch[0].shape[1]):
        z, h, c = unrolled_step("lstm", batch[0][:, t], h, c, weights)
        found.append(z)
    y = affine(network.head, h)
    if network.form == "whole":
        layer = one(torch.stack(found, 1))
    else:
        layer = passes(found) if network.form == "cell" else [list(z.chunk(4, 1)) for z in found]
    return mse_loss(y, batch[1]), {LAYER_OF_FORM[network.form]: layer, "head": one(y)}


class OneProduct(nn.Module):
    """A cell with one linear map of input and state."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Linear(FEATURES + 3, 12)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = torch.split(self.gates(torch.cat([x, h], 1)), 3, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class OneProductSequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = OneProduct(), nn.Linear(3, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), 3)
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], h, c)
        return self.head(h)


def one_product(network: Any, batch: Any):
    gates = network.cell.gates
    weights = {"weight_ih": gates.weight[:, :FEATURES], "weight_hh": gates.weight[:, FEATURES:], "bias_ih": gates.bias}
    weights["bias_hh"] = torch.zeros_like(gates.bias)
    h = c = torch.zeros(len(batch[0]), 3, dtype=batch[0].dtype)
    found = []
    for t in range(batch[0].shape[1]):
        z, h, c = unrolled_step("lstm", batch[0][:, t], h, c, weights)
        found.append(z)
    y = affine(network.head, h)
    return mse_loss(y, batch[1]), {"cell.gates": [list(z.chunk(4, 1)) for z in found], "head": one(y)}


def sequence_batch() -> tuple[Tensor, Tensor]:
    return torch.randn(3, LENGTH, FEATURES), torch.randn(3, OUTPUTS)


def routed(name: str, experts: Any, reference: Any, **further: Any) -> LayerCase:
    return LayerCase(name, lambda: Mixture(experts()), routed_batch, mse, reference, **further)


EXPERT_CASES = [
    routed("experts that are hit", lambda: ExpertModules(False), expert_modules),
    routed("experts, one called without samples", lambda: ExpertModules(True), expert_modules),
    routed("stacked experts", StackedExperts, stacked_experts, reductions=("mean",)),
    routed("stacked experts in one product", BatchedExperts, batched_experts, reductions=("mean",)),
    routed("stacked experts with clamped gates", ClampedExperts, clamped_experts, reductions=("mean",)),
    LayerCase("LSTM", lambda: Sequences("whole"), sequence_batch, mse, recurrent, reductions=("mean", "sum")),
    LayerCase("LSTM cell", lambda: Sequences("cell"), sequence_batch, mse, recurrent, reductions=("mean", "sum")),
    LayerCase("LSTM written out", lambda: Sequences("sum"), sequence_batch, mse, recurrent, reductions=("mean", "sum")),
    LayerCase("LSTM written out, one product", OneProductSequences, sequence_batch, mse, one_product),
]
