"""The network that a metric holds, as LPIPS and FID do, is no layer of the network that is trained."""

import copy

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional
from torchmetrics import Metric, MetricCollection

from lightning_psp import PSPCallback, psp_penalty, record_potentials
from tests.support.small import loader, quiet_trainer

LAM = 0.3
LAYERS = {"network.0", "network.2"}
HELD = {"distance.features.0", "distance.features.2"}


class Distance(Metric):
    """The mean square of a difference of features."""

    is_differentiable = True

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh()).requires_grad_(False)
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, x, y):
        self.total = self.total + (self.features(x) - self.features(y)).square().mean()

    def compute(self):
        return self.total


class Model(LightningModule):
    def __init__(self, use="validation"):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        self.distance, self.use, self.found = Distance(), use, []

    def training_step(self, batch, batch_index=0):
        x, labels = batch
        y = self.network(x)
        loss = functional.mse_loss(y, targets(labels, y))
        if self.use == "logged":
            self.log("distance", self.distance(y, targets(labels, y)))
        return loss + self.distance(y, targets(labels, y)) if self.use == "loss" else loss

    def validation_step(self, batch, batch_index):
        y = self.network(batch[0])
        self.distance.update(y, targets(batch[1], y))

    def on_after_backward(self):
        self.found.append([p.grad.clone() for p in self.network.parameters()])

    def configure_optimizers(self):
        return torch.optim.SGD(self.network.parameters(), lr=0.1)


def targets(labels, y):
    return functional.one_hot(labels, 3).to(y)


def trained(module, **settings):
    trainer = quiet_trainer(PSPCallback(lam=LAM, entropy=()), **settings)
    trainer.fit(module, loader(1), loader(2))
    return trainer.callback_metrics


def layers_of(metrics, stage):
    return {key.removeprefix(f"psp_z2_{stage}/") for key in metrics if key.startswith(f"psp_z2_{stage}/")}


def reference(module, batch):
    """The network's gradient: of the loss and of R over the layers on the way to it."""
    x, labels = batch
    first, second = module.network[0], module.network[2]
    z = x @ first.weight.T + first.bias
    y = z.clamp(min=0) @ second.weight.T + second.bias
    loss, layers = ((y - targets(labels, y)) ** 2).mean(), [z.square().mean(), y.square().mean()]
    if module.use == "loss":
        one, two = module.distance.features[0], module.distance.features[2]
        hidden = [v @ one.weight.T + one.bias for v in (y, targets(labels, y))]
        last = [v.clamp(min=0) @ two.weight.T + two.bias for v in hidden]
        loss = loss + ((torch.tanh(last[0]) - torch.tanh(last[1])) ** 2).mean()
        layers += [hidden[0].square().mean(), last[0].square().mean()]
    penalty = torch.stack(layers).mean()
    return torch.autograd.grad(loss + LAM * penalty, list(module.network.parameters()))


@pytest.mark.parametrize("use", ["validation", "logged", "loss"])
def test_gradient_and_layers(use):
    torch.manual_seed(0)
    module = Model(use).double()
    before = copy.deepcopy(module)

    metrics = trained(module)

    for found, wanted in zip(module.found[0], reference(before, next(iter(loader(1)))), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-12)
    assert layers_of(metrics, "train") == LAYERS | (HELD if use == "loss" else set())
    assert layers_of(metrics, "val") == LAYERS
    shown = [metrics[f"psp_z2_val/{layer}"] for layer in sorted(LAYERS)]
    torch.testing.assert_close(metrics["psp/z2_val"], torch.stack(shown).mean())


def test_a_collection_of_metrics():
    torch.manual_seed(0)
    module = Model().double()
    module.distance = MetricCollection([Distance().double()])
    assert layers_of(trained(module), "val") == LAYERS


@pytest.mark.parametrize("use", ["validation", "logged", "loss"])
def test_recorded_around_the_training_step(use):
    torch.manual_seed(0)
    module = Model(use).double()
    module.log = lambda name, value: None
    with record_potentials(module) as potentials:
        loss = module.training_step(next(iter(loader(1))))
        module.distance.reset()  # else what it sums up may be a loss
    assert recorded_layers(potentials) == LAYERS | (HELD if use == "loss" else set())
    gradients = torch.autograd.grad(loss + LAM * psp_penalty(potentials), list(module.network.parameters()))
    if use != "loss":
        for found, wanted in zip(gradients, reference(module, next(iter(loader(1)))), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-12)


def recorded_layers(potentials):
    return {layer for layer, _ in potentials.layers.values()}


def test_a_metric_by_itself_is_a_network():
    metric = Distance()
    with record_potentials(metric) as potentials:
        metric(torch.randn(2, 3).requires_grad_(), torch.randn(2, 3))
    assert recorded_layers(potentials) == {"features.0", "features.2"}
    assert len(potentials) == 4  # passes on what is trained, and on data
