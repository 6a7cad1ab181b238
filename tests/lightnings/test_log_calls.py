"""What a step logs is kept as ever, and no watch is told of the functions that this takes."""

from itertools import chain

import lightning.pytorch as lightning
import pytest
import torch
from torch.nn import functional

from lightning_psp import PSPCallback
from lightning_psp.capture.mode import Capture
from tests.support.small import Classifier, loader, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
LAM = 0.3


class Logs(Classifier):
    """Logs so many values in each step, before the network is called and after."""

    def __init__(self, values=0):
        super().__init__()
        self.values = values

    def training_step(self, batch, batch_index):
        features, labels = batch
        for number in range(self.values):
            self.log(f"mean_{number}", features.mean())
        loss = functional.cross_entropy(self(features), labels)
        self.log_dict({f"loss_{number}": loss for number in range(self.values)})
        return loss


class Crashes(Logs):
    def training_step(self, batch, batch_index):
        super().training_step(batch, batch_index)
        raise ArithmeticError


class LogsInVain(Logs):
    """Goes on where what it logs is refused."""

    def training_step(self, batch, batch_index):
        with pytest.raises(ValueError, match="cannot be logged"):
            self.log("nothing", "text")
        return super().training_step(batch, batch_index)


class LogsByItself(Logs):
    def log(self, name, value, **options):
        super().log(f"own/{name}", 2 * value, **options)


class FitsAnother(Logs):
    """Trains a network of its own between steps."""

    def on_train_batch_end(self, *args):
        fit(Logs(1))


def fit(module, *callbacks, batches=2):
    torch.manual_seed(0)
    trainer = quiet_trainer(PSPCallback(lam=LAM), *callbacks, max_epochs=1)
    trainer.fit(module.double(), loader(batches))
    return trainer


def seeded(kind, *args):
    torch.manual_seed(0)
    return kind(*args)


@pytest.fixture
def told(monkeypatch):
    """The names of the functions that a watch is told of."""
    names = []
    watched = Capture.__torch_function__

    def note(self, function, *args, **options):
        names.append(getattr(function, "__name__", ""))
        return watched(self, function, *args, **options)

    monkeypatch.setattr(Capture, "__torch_function__", note)
    return names


def test_no_watch_is_told_of_what_logging_takes(told):
    fit(Logs(0))
    without = [*told]
    told.clear()
    fit(Logs(3))
    # The means themselves are computed by the step.
    assert [name for name in told if name != "mean"] == without
    assert told.count("mean") == 2 * 3


@pytest.mark.parametrize("kind", [Logs, LogsInVain, LogsByItself])
def test_a_step_that_logs_is_the_step_that_does_not(kind):
    plain, logs = seeded(Logs, 0), seeded(kind, 3)
    fit(plain)
    trainer = fit(logs)
    assert all(map(torch.equal, chain(*plain.gradients), chain(*logs.gradients)))
    features, _ = list(loader(2))[-1]
    name, factor = ("own/mean_2", 2) if kind is LogsByItself else ("mean_2", 1)
    assert trainer.callback_metrics[name] == factor * features.mean()


@pytest.mark.parametrize("kind", [Logs, Crashes, LogsInVain, LogsByItself, FitsAnother])
def test_the_class_of_lightning_is_left_as_it_was(kind):
    before = vars(lightning.LightningModule)["log"]

    class Looks(lightning.Callback):
        found = None

        def on_train_batch_start(self, *args):
            Looks.found = vars(lightning.LightningModule)["log"]

    if kind is Crashes:
        with pytest.raises(ArithmeticError):
            fit(kind(1), Looks())
    else:
        fit(kind(1), Looks())
    assert Looks.found is not before  # else nothing is tested
    assert vars(lightning.LightningModule)["log"] is before
    assert "log" not in vars(Logs)


def test_a_callback_that_leaves_its_trainer_leaves_the_class():
    before = vars(lightning.LightningModule)["log"]

    class Leaves(lightning.Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, PSPCallback)]

    fit(Logs(1), Leaves(), batches=4)
    assert vars(lightning.LightningModule)["log"] is before


def test_what_others_put_around_it_meanwhile_stays(monkeypatch):
    monkeypatch.setattr(lightning.LightningModule, "log", vars(lightning.LightningModule)["log"])  # put back at the end
    logged = []

    class Patches(lightning.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_index):
            if batch_index == 0:
                inner = vars(lightning.LightningModule)["log"]

                def log(module, *args, **options):
                    logged.append(args)
                    inner(module, *args, **options)

                lightning.LightningModule.log = log

    fit(Logs(1), Patches())
    number = len(logged)
    assert number
    fit(Logs(1))
    assert len(logged) == 2 * number


def test_it_is_the_same_in_every_fit():
    """Code that is compiled with it would be compiled anew for another one."""
    seen = set()

    class Looks(lightning.Callback):
        def on_train_batch_start(self, *args):
            seen.add(vars(lightning.LightningModule)["log"])

    fit(Logs(1), Looks())
    fit(Logs(1), Looks())
    assert len(seen) == 1
