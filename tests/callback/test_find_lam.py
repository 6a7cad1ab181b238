"""The search for λ: each short training is what a training of its own would be, and nothing is left of them."""

import copy
import importlib
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from torchmetrics import MeanMetric

from lightning_psp import PSPCallback, find_lam
from tests.support.either_lightning import NAMES

LAMS = (0.1, 3.0)
SAME = pytest.mark.filterwarnings("ignore:find_lam cannot choose")  # where trainings are to be the same


def make(package="lightning.pytorch", fails_at=None, error=RuntimeError):
    """A small classifier with batch norm and dropout, whose step can fail."""
    lightning = importlib.import_module(package)

    class Module(lightning.LightningModule):
        steps = 0  # of the class, for what a module has is given back

        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.network = nn.Sequential(
                nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)
            )

        def training_step(self, batch, batch_idx):
            type(self).steps += 1
            if self.steps == fails_at:
                raise error("here")
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            logits = self.network(batch[0])
            self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))
            self.log("val_error", (logits.argmax(1) != batch[1]).float().mean())

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]

    return Module()


def loaders():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 5, generator=generator)
    data = TensorDataset(inputs, inputs[:, :3].argmax(1))
    return DataLoader(data, batch_size=10, shuffle=True), DataLoader(data, batch_size=30)


def trainer(package="lightning.pytorch", callbacks=(), **settings):
    settings = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, **settings}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return importlib.import_module(package).Trainer(accelerator="cpu", callbacks=list(callbacks), **settings, **quiet)


def numbers_of(values):
    return {name: float(value) for name, value in values.items()}


@pytest.mark.parametrize("package", NAMES)
def test_each_training_is_what_one_alone_would_be(package):
    module = make(package)
    start = copy.deepcopy(module.state_dict())
    torch.manual_seed(2)
    search = find_lam(trainer(package), module, *loaders(), lams=LAMS, epochs=2, monitor="val_loss")
    assert search.lams == (0.0, *LAMS)
    for place, lam in enumerate(search.lams):
        alone, other = trainer(package, [PSPCallback(lam=lam)]), make(package)
        other.load_state_dict(start)
        torch.manual_seed(2)
        alone.fit(other, *loaders())
        expected = numbers_of(alone.callback_metrics)
        assert {name: values[place] for name, values in search.values.items()} == pytest.approx(
            expected, abs=0, rel=0, nan_ok=True
        )
    assert search.values["psp/z2_val"][2] < search.values["psp/z2_val"][0]


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_a_precision_to_which_the_trainer_converts_the_module(precision):
    module = make()
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    values = copy.deepcopy(module.state_dict())
    gradients = [parameter.grad.clone() for parameter in module.parameters()]
    find_lam(trainer(precision=precision), module, *loaders(), lams=LAMS, epochs=1)
    now = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    assert all(now[name] is tensor for name, tensor in tensors.items())
    for name, value in values.items():
        assert now[name].dtype == value.dtype
        assert torch.equal(now[name], value)
    for parameter, gradient in zip(module.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)
    assert module.dtype == torch.float32


@pytest.mark.parametrize("failure", [None, RuntimeError, KeyboardInterrupt])
def test_everything_is_as_before(failure):
    # Six steps an epoch: the second training fails.
    module = make(fails_at=None if failure is None else 9, error=failure or RuntimeError)
    own = PSPCallback(lam=0.5)
    found = trainer(callbacks=[own], num_sanity_val_steps=2, check_val_every_n_epoch=2, max_steps=11)
    before = copy.deepcopy(module.state_dict())
    callbacks, loggers = list(found.callbacks), found.loggers
    torch.manual_seed(3)
    random = torch.get_rng_state()
    if failure is None:
        find_lam(found, module, *loaders(), lams=LAMS, epochs=1)
    else:
        # Some versions of Lightning end with SystemExit where they were interrupted.
        with pytest.raises((failure, SystemExit)):
            find_lam(found, module, *loaders(), lams=LAMS, epochs=1)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert found.callbacks == callbacks
    assert found.loggers == loggers
    assert (found.current_epoch, found.global_step, found.should_stop) == (0, 0, False)
    assert (found.max_epochs, found.max_steps, found.num_sanity_val_steps) == (2, 11, 2)
    assert found.check_val_every_n_epoch == 2
    assert own.lam == 0.5
    assert module.training


def test_loss_scaling_starts_alike_in_all_trainings():
    scaler, scales = torch.amp.GradScaler("cpu", growth_interval=2), []
    precision = importlib.import_module("lightning.pytorch.plugins").MixedPrecision("16-mixed", "cpu", scaler)
    module = make()
    type(module).on_train_start = lambda self: scales.append(scaler.get_scale())
    type(module).on_train_end = lambda self: scales.append(scaler.get_scale())
    find_lam(trainer(precision=None, plugins=[precision]), module, *loaders(), lams=LAMS, epochs=1)
    assert scales[::2] == [65536.0, 65536.0, 65536.0]
    assert scales[1] > 65536.0
    assert scaler.get_scale() == 65536.0


def test_logged_values_and_profiles_are_those_of_before():
    module, found = make(), trainer(profiler="simple")
    found.validate(module, loaders()[1], verbose=False)
    values, profile = numbers_of(found.callback_metrics), copy.deepcopy(found.profiler.recorded_durations)
    assert "val_loss" in values
    find_lam(found, module, *loaders(), lams=LAMS, epochs=1)
    assert numbers_of(found.callback_metrics) == numbers_of(found.logged_metrics) == values
    assert found.profiler.recorded_durations == profile


@SAME
@pytest.mark.parametrize("by_datamodule", [False, True])
def test_all_trainings_start_alike_whatever_a_module_gathers(by_datamodule):
    """With a λ that is lost in rounding the second training is the first one again."""
    lightning = importlib.import_module("lightning.pytorch")

    class Gathers(type(make())):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.count = 0
            self.losses = []
            self.mean = MeanMetric()

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.count += 1
            self.losses.append(loss.item())
            self.mean.update(loss.detach())
            self.log("mean_of_all", self.mean.compute() + sum(self.losses) / len(self.losses))
            self.late = getattr(self, "late", 0) + 1
            self.manual_backward(loss * (self.count + self.late) / 10)
            self.optimizers().step()
            if batch_idx < 5:
                self.optimizers().zero_grad()  # the last gradient of an epoch stays

    class Data(lightning.LightningDataModule):
        def __init__(self):
            super().__init__()
            self.generator = torch.Generator().manual_seed(4)

        def train_dataloader(self):
            data = loaders()[0].dataset
            return DataLoader(data, batch_size=10, sampler=RandomSampler(data, generator=self.generator))

        def val_dataloader(self):
            return loaders()[1]

    module, data = Gathers(), Data()
    where = {"datamodule": data}
    if not by_datamodule:
        where = {"train_dataloaders": data.train_dataloader(), "val_dataloaders": data.val_dataloader()}
    before = data.generator.get_state()
    search = find_lam(trainer(), module, **where, lams=(1e-30,), epochs=2)
    assert search.values["val_loss"][0] == search.values["val_loss"][1]
    assert search.values["mean_of_all"][0] == search.values["mean_of_all"][1]
    assert torch.equal(data.generator.get_state(), before)
    assert (module.count, module.losses, module.mean.weight.item(), hasattr(module, "late")) == (0, [], 0, False)
    assert all(parameter.grad is None for parameter in module.parameters())


@SAME
def test_parts_and_hooks_that_a_training_makes_are_gone_before_the_next():
    module = make()
    del module.network
    made, seen = [], []

    def configure_model(self):
        if not hasattr(self, "network"):
            self.network = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))
            made.append(self.network)

    def on_train_start(self):
        self.frozen.register_forward_hook(lambda *call: seen.append(call))
        self.frozen.add_module("late", nn.ReLU())
        with torch.no_grad():
            self.frozen(torch.ones(1, 2))

    module.frozen = nn.Sequential(nn.Linear(2, 2))
    first = module.frozen[0]
    type(module).configure_model, type(module).on_train_start = configure_model, on_train_start
    search = find_lam(trainer(), module, *loaders(), lams=(1e-9,), epochs=1)
    assert len(made) == len(seen) == 2
    assert search.values["val_loss"][0] == pytest.approx(search.values["val_loss"][1], rel=1e-4)
    assert not hasattr(module, "network")
    assert list(module.frozen.children()) == [first]
    assert not module.frozen._forward_hooks


def assert_ended_alike(without, after_a_search):
    (weights, values, *counts), (weights_after, values_after, *counts_after) = without, after_a_search
    assert all(torch.equal(value, weights_after[name]) for name, value in weights.items())
    assert values == values_after
    assert counts == counts_after == [3, 18]


def test_the_training_after_it_is_the_one_without_it():
    ended = []
    for searches in (False, True):
        module, found = make(), trainer(callbacks=[PSPCallback(lam=0.1)], max_epochs=3)
        torch.manual_seed(4)
        if searches:
            find_lam(found, module, *loaders(), lams=LAMS, epochs=1)
        found.fit(module, *loaders())
        ended.append((module.state_dict(), numbers_of(found.callback_metrics), found.current_epoch, found.global_step))
    assert_ended_alike(*ended)


def test_a_training_that_goes_on_after_it_is_the_one_without_it():
    ended = []
    for searches in (False, True):
        module, found = make(), trainer(callbacks=[PSPCallback(lam=0.1)], max_epochs=1)
        torch.manual_seed(4)
        found.fit(module, *loaders())
        if searches:
            find_lam(found, module, *loaders(), lams=LAMS, epochs=1)
        found.fit_loop.max_epochs = 3
        found.fit(module, *loaders())
        ended.append((module.state_dict(), numbers_of(found.callback_metrics), found.current_epoch, found.global_step))
    assert_ended_alike(*ended)


@pytest.mark.parametrize("package", NAMES)
def test_callbacks_that_the_module_configures(package):
    lightning = importlib.import_module(package)
    module, plain = make(package), make(package)
    started = []

    class Started(lightning.Callback):
        def on_fit_start(self, trainer, pl_module):
            started.append(pl_module)

    own = [PSPCallback(lam=0.5, exclude=("network.4",)), Started()]
    type(module).configure_callbacks = lambda self: own
    torch.manual_seed(7)
    search = find_lam(trainer(package), module, *loaders(), lams=LAMS, epochs=1)
    torch.manual_seed(7)
    with_trainers = find_lam(
        trainer(package, callbacks=[copy.deepcopy(own[0])]), plain, *loaders(), lams=LAMS, epochs=1
    )
    assert search.values["psp/lam"] == (0.0, *LAMS)
    assert search == with_trainers
    assert not started
    assert own[0].lam == 0.5
    assert "configure_callbacks" not in vars(module)


def test_the_settings_of_the_trainers_callback_are_used():
    module = make()
    own = trainer(callbacks=[PSPCallback(lam=9.0, reduction="sum", output=False, entropy=())])
    sums = find_lam(own, module, *loaders(), lams=[0.01], epochs=1).values
    means = find_lam(trainer(), module, *loaders(), lams=[0.01], epochs=1).values
    assert "psp/entropy_val" in means
    assert "psp/entropy_val" not in sums
    assert sums["psp/penalty"][1] > 5 * means["psp/penalty"][1]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_same_value_for_every_lam_is_warned_of(kind):
    module, lams = make(), np.array([1e-30, 1e-29], dtype=kind)
    with pytest.warns(UserWarning, match=r"cannot choose λ: 'val_error' is the same for every λ\. Train longer"):
        search = find_lam(trainer(), module, *loaders(), lams=lams, epochs=1, monitor="val_error")
    assert search.is_undecided
    assert search.suggestion() == float(lams[1])


@pytest.mark.filterwarnings("ignore:The potentials of layer .* hold NaN or infinity")
def test_a_training_that_blows_up_is_not_suggested():
    found = find_lam(trainer(), make(), *loaders(), lams=[1e-3, 1e12], epochs=1, monitor="val_loss")
    assert not math.isfinite(found.values["val_loss"][2])
    assert found.suggestion() in (0.0, 1e-3)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_bad_arguments():
    module = make()
    for lams in ((), (0.0, 1.0), (-1.0,), (math.inf,)):
        with pytest.raises(ValueError, match=r"`lams(\[0\])?`"):
            find_lam(trainer(), module, *loaders(), lams=lams)
    for lams in (0.1, "0.1", ("0.1",)):
        with pytest.raises(TypeError, match=r"`lams(\[0\])?` to be .* but got "):
            find_lam(trainer(), module, *loaders(), lams=lams)
    with pytest.raises(ValueError, match="`epochs`"):
        find_lam(trainer(), module, *loaders(), epochs=0)
    with pytest.raises(TypeError, match=r"`epochs` to be an integer but got 1\.5"):
        find_lam(trainer(), module, *loaders(), epochs=1.5)
    with pytest.raises(TypeError, match=r"Expected a `lightning\.pytorch\.LightningModule` but got Sequential"):
        find_lam(trainer(), module.network, *loaders())
    with pytest.raises(TypeError, match="`trainer` to be a Trainer of Lightning but got make"):
        find_lam(module, trainer(), *loaders())
    with pytest.raises(ValueError, match="`mode`"):
        find_lam(trainer(), module, *loaders(), mode="lowest")
    with pytest.raises(ValueError, match=r"`monitor`.*'accuracy'.*val_error"):
        find_lam(trainer(), module, *loaders(), epochs=1, monitor="accuracy")
    with pytest.raises(ValueError, match=r"Logged were none\. There was no validation: give `val_dataloaders`"):
        find_lam(trainer(), module, loaders()[0], epochs=1)
    for settings in ({"barebones": True}, {"limit_train_batches": 0}):
        with pytest.raises(ValueError, match=rf"Logged were .*`{next(iter(settings))}=(True|0)`"):
            find_lam(trainer(**settings), module, *loaders(), epochs=1)
    with pytest.raises(TypeError, match="`monitor` to be the name of a logged value but got 5"):
        find_lam(trainer(), module, *loaders(), monitor=5)
    for monitor in ("psp/z2_val", "psp_z2_val/network.0"):
        with pytest.raises(ValueError, match=rf"`monitor` to name a measure of success, .* but got '{monitor}'"):
            find_lam(trainer(), module, *loaders(), monitor=monitor)
    with pytest.raises(
        TypeError, match=r"`datamodule` to be a LightningDataModule but got \(0\.1, 1\.0\)\. Give `lams`"
    ):
        find_lam(trainer(), module, *loaders(), (0.1, 1.0))
    with pytest.raises(ValueError, match=r"one process but got 2.*devices=1"):
        find_lam(trainer(devices=2, strategy="ddp"), module, *loaders())


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("once", [iter, lambda loader: (batch for batch in loader)])
def test_data_that_end_after_one_pass(once, which, epochs):
    given = list(loaders())
    given[which] = once(given[which])
    with pytest.raises(ValueError, match=r"to start again for each training, .* ends after one pass\."):
        find_lam(trainer(), make(), *given, epochs=epochs)
