"""Metrics, and the networks that some hold as LPIPS and FID do, are no part of the network that is trained."""

import copy

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional
from torchmetrics import AUROC, MeanMetric, Metric, MetricCollection

from lightning_psp import PSPCallback, psp_penalty, record_potentials
from lightning_psp.capture.frames import Frames
from lightning_psp.capture.mode import Capture
from tests.support.small import loader, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
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


class MeasuresFeatures(LightningModule):
    """Returns features beside the prediction, of which a metric alone takes the size; the loss takes none of them."""

    def __init__(self, size):
        super().__init__()
        self.first, self.features, self.head = nn.Linear(6, 5), nn.Linear(5, 2), nn.Linear(5, 3)
        self.size = size

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        return self.head(hidden), self.features(hidden)

    def training_step(self, batch, batch_index):
        y, features = self(batch[0])
        self.size(features)
        return functional.mse_loss(y, targets(batch[1], y))

    def validation_step(self, batch, batch_index):
        self.log("loss", self.training_step(batch, batch_index))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Counts(MeanMetric):
    """Is no part of a loss, and says so."""

    is_differentiable = False


def test_what_a_metric_takes_is_no_output_in_later_batches_either():
    """The hash of a metric changes with what it has counted."""
    layers = [layers_of(trained(MeasuresFeatures(MeanMetric()).double(), limit_val_batches=n), "val") for n in (1, 2)]
    assert layers == [{"first", "head"}] * 2


def test_a_metric_outside_the_network_is_known_once(monkeypatch):
    numbers = []
    start = Frames.start

    def note(self, *args):
        start(self, *args)
        numbers.append(len(self._foreign))

    monkeypatch.setattr(Frames, "start", note)
    module = MeasuresFeatures(nn.Identity())
    vars(module)["_modules"].pop("size")
    vars(module)["size"] = MeanMetric()
    quiet_trainer(PSPCallback(lam=LAM), max_epochs=4).fit(module.double(), loader(1))
    assert max(numbers) <= 2  # a loss module of torchmetrics' own may be another


@pytest.mark.parametrize("metric", [MeanMetric, Counts])
def test_no_watch_is_told_of_what_a_metric_that_only_counts_does(metric, monkeypatch):
    told = []
    watched = Capture.__torch_function__

    def note(self, function, *args, **options):
        told.append(function)
        return watched(self, function, *args, **options)

    monkeypatch.setattr(Capture, "__torch_function__", note)
    found = []
    for size in (nn.Identity(), metric()):
        torch.manual_seed(0)
        module = MeasuresFeatures(size).double()
        told.clear()
        trainer = quiet_trainer(PSPCallback(lam=LAM), max_epochs=1, enable_model_summary=False)
        trainer.fit(module, loader(2))
        found.append((len(told), [*module.parameters()], layers_of(trainer.callback_metrics, "train")))
    (without, plain, layers), (number, counted, layers_beside) = found
    assert (number == without) == (metric is Counts)
    assert all(map(torch.equal, plain, counted))
    assert layers_beside == layers


def test_a_network_in_a_metric_that_only_counts_is_no_layer():
    class Inception(Distance):
        is_differentiable = False

    torch.manual_seed(0)
    module = Model("logged").double()
    module.distance = Inception().double()
    metrics = trained(module)
    assert layers_of(metrics, "train") == layers_of(metrics, "val") == LAYERS


class LooksAtProbabilities(LightningModule):
    """Gives probabilities and labels to what takes no part in the loss."""

    def __init__(self, look):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        self.look = look

    def training_step(self, batch, batch_index):
        y = self.network(batch[0])
        self.look(y.softmax(-1), batch[1])
        return functional.mse_loss(y, targets(batch[1], y))

    def validation_step(self, batch, batch_index):
        self.training_step(batch, batch_index)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    "look",
    [
        lambda p, labels: AUROC("multiclass", num_classes=3).update(p, labels),
        lambda p, _: ((p > 0.1) * (p < 0.9)).sum(),
    ],
    ids=["metric", "conditions"],
)
def test_conditions_on_probabilities_are_no_layer(look):
    metrics = trained(LooksAtProbabilities(look).double())
    assert layers_of(metrics, "train") == layers_of(metrics, "val") == LAYERS
