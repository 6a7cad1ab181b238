"""Validations within a validation: what they return, and that nothing tells of them afterwards."""

import random
from collections import Counter

import numpy
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EarlyStopping, LambdaCallback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_psp import PSPCallback
from lightning_psp.pruning.module_attributes import ModuleAttributes
from lightning_psp.pruning.validation_run import check_lightning, validations_without_trace
from tests.support.small import BATCH, CLASSES, FEATURES, quiet_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode at the start of training"),
    pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled"),
]
RUNS, MONITOR = 3, "val_loss/dataloader_idx_1"


def data(batches, seed, **settings):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batches * BATCH, FEATURES, generator=generator)
    labels = torch.randint(0, CLASSES, (batches * BATCH,), generator=generator)
    return DataLoader(TensorDataset(features, labels), batch_size=BATCH, **settings)


class Model(LightningModule):
    """Does in its validation what users do there, tidy or not."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, CLASSES)
        )
        self.frozen = nn.Dropout(0.5).eval()
        self.shared = MeanMetric()
        self.accuracy = MulticlassAccuracy(CLASSES)
        self.collection = MetricCollection({"recall": MulticlassAccuracy(CLASSES, average="macro")})
        self.outputs = []
        self.by_loader = {"losses": [], "batches": 0}
        self.total = torch.zeros(())
        self.count = 0
        self.states = []

    def loss(self, batch):
        return functional.cross_entropy(self.network(batch[0]), batch[1])

    def training_step(self, batch, batch_index):
        loss = self.loss(batch)
        self.shared(loss.detach())
        self.log("shared", self.shared, on_step=True, on_epoch=True)
        self.log("loss", loss, prog_bar=True)
        self.log("random", torch.rand(()) + random.random() + numpy.random.rand())
        return loss

    def on_validation_epoch_start(self):
        self.recall_now = []

    def validation_step(self, batch, batch_index, dataloader_idx=0):
        loss, noise = self.loss(batch), torch.rand(()) + random.random() + numpy.random.rand()
        self.log("val_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("noise", noise)
        self.shared.update(loss)
        self.accuracy(self.network(batch[0]), batch[1])
        self.log("accuracy", self.accuracy, on_epoch=True)
        self.collection.update(self.network(batch[0]), batch[1])
        self.outputs.append(loss)
        self.by_loader["losses"].append(loss)
        self.by_loader["batches"] += 1
        self.total += loss
        self.count += 1
        for logger in self.loggers:
            logger.experiment.add_scalar("by hand", loss)
            logger.log_metrics({"by hand": loss.item()})
        assert isinstance(self.loggers[1], CSVLogger)
        assert any(isinstance(each, ModelCheckpoint) for each in self.trainer.callbacks)
        return loss

    def on_validation_epoch_end(self):
        self.log("mean_of_outputs", torch.stack(self.outputs).mean())
        self.log("mean_of_metric", self.collection.compute()["recall"])
        self.collection.reset()
        self.states.append((str(self.trainer.state.stage), self.trainer.current_epoch, self.trainer.global_step))

    def on_validation_end(self):
        self.outputs.clear()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Experiment:
    """What the logger of the tests writes to."""

    def __init__(self):
        self.points = []

    def add_scalar(self, *values):
        self.points.append(values)


class Keeps(DummyLogger):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.own_experiment = Experiment()
        self.rows = []

    @property
    def experiment(self):
        return self.own_experiment

    def __getattr__(self, name):
        raise AttributeError(name)

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))


class Writes(CSVLogger):
    """A logger with `add_scalar`."""

    @property
    def experiment(self):
        experiment = super().experiment
        experiment.add_scalar = lambda *values: None
        return experiment


def nothing():
    """What is called before the first step of a validation."""


class Counts(Callback):
    """Counts its hooks."""

    def __init__(self):
        self.calls = Counter()


for hook in [name for name in dir(Callback) if name.startswith("on_")]:
    setattr(Counts, hook, lambda self, *_, hook=hook, **__: self.calls.update([hook]))


class Searches(Callback):
    """Validates a few times more within each validation, with a weight changed in the meantime."""

    def __init__(self, runs=RUNS):
        self.runs = runs
        self.found = []
        self.logged = []

    def on_validation_start(self, trainer, pl_module):
        self.before = ModuleAttributes(pl_module)

    def on_validation_end(self, trainer, pl_module):
        if trainer.sanity_checking or not self.runs:
            return
        check_lightning(trainer)
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        weight = pl_module.network[0].weight
        kept = weight.detach().clone()
        with validations_without_trace(trainer, pl_module, self.before) as validate:
            found = [validate(nothing) for _ in range(self.runs)]
            with torch.no_grad():
                weight.zero_()
                found.append(validate(nothing))
                weight.copy_(kept)
        self.found.append(found)


def fit(folder, runs, **settings):
    searches, counts, keeps = Searches(runs), Counts(), Keeps()
    stopping = EarlyStopping(MONITOR, patience=100)
    saving = ModelCheckpoint(folder / "saved", "{epoch}", monitor=MONITOR, save_top_k=-1)
    calls = []
    by_attribute = LambdaCallback(on_validation_end=lambda *_: calls.append("end"))
    others = [counts, stopping, by_attribute, PSPCallback(lam=0.01, entropy=()), saving]
    module = Model()
    trainer = quiet_trainer(
        *others,
        searches,
        max_epochs=3,
        logger=[keeps, Writes(folder, name="csv", version=0)],
        log_every_n_steps=1,
        enable_checkpointing=True,
        precision="32-true",
        num_sanity_val_steps=1,
        **settings,
    )
    loaders = [data(2, 1, shuffle=True), data(3, 2, shuffle=True, generator=torch.Generator().manual_seed(5))]
    random.seed(0)
    numpy.random.seed(0)
    trainer.fit(module, data(4, 0, shuffle=True), loaders)
    seen = {
        "rows": keeps.rows,
        "points": len(keeps.own_experiment.points),
        "file": (folder / "csv" / "version_0" / "metrics.csv").read_text(),
        "calls": counts.calls,
        "by attribute": len(calls),
        "stopping": {**stopping.state_dict(), "best_score": float(stopping.best_score)},
        "saved": sorted(path.name for path in (folder / "saved").glob("*")),
        "best": float(saving.best_model_score),
        "metrics": [
            {name: float(value) for name, value in metrics.items()}
            for metrics in (trainer.callback_metrics, trainer.logged_metrics, trainer.progress_bar_metrics)
        ],
        "states": module.states,
        "outputs": [len(module.outputs), len(module.by_loader["losses"]), module.by_loader["batches"], module.count],
        "total": module.total.item(),
        "modes": [part.training for part in module.modules()],
        "random": (torch.rand(()).item(), random.random(), numpy.random.rand()),
        "progress": trainer.fit_loop.state_dict(),
        "should stop": trainer.should_stop,
        "attributes": sorted(vars(trainer)),
    }
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    return seen, weights, searches, module


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"val_check_interval": 2},
        {"limit_val_batches": 2},
        {"accumulate_grad_batches": 3},
        {"inference_mode": False},
    ],
    ids=["plain", "in mid-epoch", "limited", "accumulated", "no inference mode"],
)
def test_a_training_does_not_tell_of_it(tmp_path, settings):
    expected, expected_weights, _, _ = fit(tmp_path / "without", 0, **settings)
    seen, weights, searches, module = fit(tmp_path / "with", RUNS, **settings)
    assert len(searches.found) == 3 * (2 if "val_check_interval" in settings else 1)
    assert seen.keys() == expected.keys()
    for key, value in expected.items():
        assert seen[key] == value, key
    assert all(torch.equal(value, weights[name]) for name, value in expected_weights.items())
    for part in module.modules():
        assert not any(isinstance(value, torch.Tensor) and value.is_inference() for value in vars(part).values())


def test_each_run_gives_what_the_validation_logged(tmp_path):
    *_, searches, _ = fit(tmp_path, RUNS)
    for logged, (*found, changed) in zip(searches.logged, searches.found, strict=True):
        # PSPCallback is not called
        names = {MONITOR, "accuracy/dataloader_idx_0", "mean_of_outputs", "mean_of_metric"}
        for values in found:
            # but for the order of the batches
            assert {name: values[name] for name in names} == pytest.approx({name: logged[name] for name in names}, 1e-6)
            assert not any(name.startswith("psp") for name in values)
            assert values["noise/dataloader_idx_0"] == found[0]["noise/dataloader_idx_0"]
        assert changed[MONITOR] != logged[MONITOR]


class Steers(Model):
    """Sets its learning rates, and asks for the end of the training, when a validation has ended."""

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        for scheduler in self.lr_schedulers():
            scheduler.step()
        group = self.optimizers()[0].param_groups[0]
        group["momentum"] = 0.5 * group["momentum"]
        if not self.network[0].weight.any():  # in a search alone
            self.trainer.should_stop = True

    def training_step(self, batch, batch_index):
        groups = [group for optimizer in self.optimizers() for group in optimizer.param_groups]
        self.rates.append([(float(group["lr"]), group["momentum"]) for group in groups])
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self):
        self.automatic_optimization, self.rates = False, []
        first = torch.optim.SGD(self.network[:3].parameters(), lr=0.1, momentum=0.9)
        second = torch.optim.SGD(self.network[3:].parameters(), lr=torch.tensor(0.1), momentum=0.9, foreach=False)
        kinds = torch.optim.lr_scheduler
        return [first, second], [kinds.ExponentialLR(first, 0.5), kinds.MultiStepLR(second, [1, 3], 0.1)]


def test_learning_rates_and_the_wish_to_stop_are_those_of_before(tmp_path):
    found = []
    for runs in (0, RUNS):
        searches, module = Searches(runs), Steers()
        folder = tmp_path / str(runs)
        loggers = [Keeps(), Writes(folder, name="csv", version=0)]
        trainer = quiet_trainer(
            searches,
            ModelCheckpoint(folder / "saved"),
            logger=loggers,
            max_epochs=4,
            num_sanity_val_steps=0,
            precision="32-true",
            enable_checkpointing=True,
        )
        trainer.fit(module, data(2, 0), [data(2, 1), data(1, 2)])
        assert len(searches.found) == (4 if runs else 0)
        assert not trainer.should_stop
        found.append(module.rates)
    assert len(found[0]) == 8
    assert found[0] == found[1]


class Crashes(Searches):
    """In the middle of a run."""

    def on_validation_end(self, trainer, pl_module):
        def fail(*_):
            raise KeyError("crash")

        kept = self.things(trainer, pl_module)
        pl_module.validation_step = fail
        before = ModuleAttributes(pl_module)
        states = torch.get_rng_state(), random.getstate()
        with pytest.raises(KeyError), validations_without_trace(trainer, pl_module, before) as validate:
            validate(nothing)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]
        assert all(one is other for one, other in zip(self.things(trainer, pl_module), kept, strict=True))
        assert not pl_module.network.training
        self.found.append(True)

    @staticmethod
    def things(trainer, pl_module):
        return (
            trainer._logger_connector,
            trainer.fit_loop.epoch_loop.val_loop,
            trainer.callbacks,
            *map(type, trainer.callbacks),
            *map(type, trainer.loggers),
            trainer.state,
            trainer.state.stage,
        )


def test_nothing_is_left_after_a_crash():
    crashes = Crashes()
    trainer = quiet_trainer(crashes, logger=[Keeps()], num_sanity_val_steps=0, precision="32-true")

    class Plain(Model):
        def validation_step(self, batch, batch_index):
            self.log("val_loss", self.loss(batch))

        on_validation_epoch_end = LightningModule.on_validation_epoch_end

    trainer.fit(Plain(), data(2, 0), data(2, 1))
    assert crashes.found == [True]
    assert "val_loss" in trainer.callback_metrics


def test_another_lightning_is_refused_when_the_fit_starts(monkeypatch):
    from lightning.pytorch.loops import _EvaluationLoop

    from lightning_psp.pruning import LobsterPruning

    trainer = quiet_trainer(LobsterPruning(), precision="32-true")
    made = trainer.fit_loop.epoch_loop.val_loop
    assert isinstance(made, _EvaluationLoop)
    del made._max_batches
    with pytest.raises(NotImplementedError, match=r"no _EvaluationLoop._max_batches. Use a version from 2.4"):
        trainer.fit(Model(), data(2, 0), data(2, 1))
