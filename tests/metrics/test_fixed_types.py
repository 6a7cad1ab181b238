"""The states of the metrics keep their types, whatever type they or the network that holds them are given."""

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

from lightning_psp.functional import psp_entropy
from lightning_psp.metrics import MeanSquarePotential, PSPEntropy
from lightning_psp.metrics.fixed_types import _keeping_types
from tests.support.entropy_cases import batch
from tests.support.small import quiet_trainer

HALF = (torch.float16, torch.bfloat16)
CONVERSIONS = {
    "set_dtype": lambda metric, dtype: metric.set_dtype(dtype),
    "type": lambda metric, dtype: metric.type(dtype),
    "to": lambda metric, dtype: metric.to(dtype),
    "to a device": lambda metric, dtype: metric.to("cpu", dtype),
    "half": lambda metric, dtype: metric.half(),
    "bfloat16": lambda metric, dtype: metric.bfloat16(),
    "float": lambda metric, dtype: metric.float(),
    "double": lambda metric, dtype: metric.double(),
    "inside a module": lambda metric, dtype: nn.ModuleList([metric]).to(dtype)[0],
    "inside a half module": lambda metric, dtype: nn.ModuleList([metric]).half()[0],
    "collection": lambda metric, dtype: MetricCollection({"one": metric}).set_dtype(dtype)["one"],
    "converted collection": lambda metric, dtype: MetricCollection({"one": metric}).to(dtype)["one"],
}
METRICS = {
    "mean square": MeanSquarePotential,
    "order 1": lambda: PSPEntropy(3),
    "order 2": lambda: PSPEntropy(3, 2),
}


def states_of(metric):
    return [
        (state.dtype, state.tolist())
        for value in metric.metric_state.values()
        for state in (value if isinstance(value, list) else [value])
    ]


def update(metric, z, target):
    metric.update(*((z,) if isinstance(metric, MeanSquarePotential) else (z, target)))


@pytest.mark.parametrize("dtype", [*HALF, torch.float64], ids=str)
@pytest.mark.parametrize("way", CONVERSIONS)
@pytest.mark.parametrize("name", METRICS)
def test_states_keep_their_types(name, way, dtype):
    z, target = batch((3000, 4))
    z = z * 300  # the sum of whose squares half precision cannot hold
    metric, expected = METRICS[name](), METRICS[name]()
    for start in range(0, 3000, 1000):
        part = z[start : start + 1000], target[start : start + 1000]
        metric = CONVERSIONS[way](metric, dtype)  # before the first update, and between others
        update(metric, *part)
        update(expected, *part)
    assert states_of(CONVERSIONS[way](metric, dtype)) == states_of(expected)
    value = metric.compute()
    assert CONVERSIONS[way](metric, dtype).compute() == value == expected.compute()
    assert metric.compute().dtype == torch.float64
    metric.reset()
    update(metric, *part)
    expected.reset()
    update(expected, *part)
    assert states_of(metric) == states_of(expected)


def test_a_type_that_holds_no_sum_of_squares():
    metric = MeanSquarePotential().set_dtype(torch.float16)
    metric.update(torch.full((10, 1000), 10.0))
    assert metric.compute() == 100.0
    metric.update(torch.full((10, 1000), 20.0))
    assert metric.compute() == 250.0


def test_metrics_of_a_collection_that_share_their_states():
    z, target = batch((30, 7))
    metrics = MetricCollection({"mean": PSPEntropy(3), "units": PSPEntropy(3, reduction="none")})
    metrics.update(z[:20], target[:20])
    assert len(metrics.compute_groups) == 1
    metrics.set_dtype(torch.float16)
    metrics.update(z[20:], target[20:])
    values = metrics.compute()
    assert values["mean"] == psp_entropy(z, target, 3)
    assert torch.equal(values["units"], psp_entropy(z, target, 3, reduction="none"))


def test_what_moves_tensors_still_moves_the_states():
    metric = PSPEntropy(3).to("meta")
    assert {state.device.type for state in metric.metric_state.values()} == {"meta"}
    metric = MeanSquarePotential().to("meta", torch.float16)
    assert metric.device.type == "meta"
    assert metric.square_sum.dtype == torch.float64
    metric.reset()
    assert metric.square_sum.device.type == "meta"


def test_a_device_without_float64(monkeypatch):
    """Which refuses tensors in it."""
    monkeypatch.setattr(
        "lightning_psp.metrics.fixed_types.widest_float",
        lambda device: torch.float32 if device.type == "meta" else torch.float64,
    )

    def move(tensor):
        if tensor.dtype == torch.float64:
            raise TypeError("Cannot convert a tensor to float64")
        return tensor.to("meta", torch.float16)

    moved = _keeping_types(move)(torch.ones(2, dtype=torch.float64))
    assert (moved.device.type, moved.dtype) == ("meta", torch.float32)
    metric = MeanSquarePotential()
    metric._apply(move)
    assert (metric.square_sum.device.type, metric.square_sum.dtype) == ("meta", torch.float32)


class Measured(LightningModule):
    """Holds the metrics of its first layer, fed in half precision."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 3)
        self.square, self.entropy = MeanSquarePotential(), PSPEntropy(3)
        self.seen = []

    def training_step(self, batch):
        x, target = batch
        z = self.first(x)
        self.seen.append((z.detach().clone(), target))
        self.square.update(z.detach())
        self.entropy.update(z.detach(), target)
        self.log("square", self.square, on_epoch=True, on_step=False)
        self.log("entropy", self.entropy, on_epoch=True, on_step=False)
        return nn.functional.cross_entropy(self.last(z.relu()), target)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "64-true", "bf16-mixed"])
def test_metrics_inside_a_lightning_module(precision):
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(6, generator=generator) * 400, number % 3) for number in range(24)]
    module = Measured()
    trainer = quiet_trainer(max_epochs=1, precision=precision)
    trainer.fit(module, DataLoader(data, batch_size=8))
    z = torch.cat([z for z, _ in module.seen])
    target = torch.cat([target for _, target in module.seen])
    assert z.dtype == {"16-true": torch.float16, "64-true": torch.float64}.get(precision, torch.bfloat16)
    assert trainer.callback_metrics["square"].item() == pytest.approx(z.double().square().mean().item(), rel=1e-6)
    assert trainer.callback_metrics["entropy"].item() == pytest.approx(psp_entropy(z, target, 3).item(), rel=1e-6)
