"""What the callback does around a training: logging, leaving nothing behind, checkpoints, copies."""

import copy
import io
import pickle

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional

from lightning_psp import PSPCallback
from tests.support.small import LAYERS, Classifier, loader, quiet_trainer, traces

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


@torch.no_grad()
def mean_squares(module, features):
    """⟨z²⟩ of each layer of `Classifier`."""
    return {layer: z.square().mean().item() for layer, z in reference_potentials(module, features).items()}


def reference_potentials(module, features):
    """The three potentials of `Classifier`, written out."""
    first = features @ module.first.weight.T + module.first.bias
    second = (first * torch.sigmoid(first)) @ module.second.weight.T + module.second.bias
    third = second.clamp(min=0) @ module.third.weight.T + module.third.bias
    return {"first": first, "second": second, "third": third}


class Record(Callback):
    """Keeps the logged values and the model's weights of every batch."""

    def __init__(self):
        self.metrics = []
        self.weights = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.weights.append(copy.deepcopy(pl_module.state_dict()))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.metrics.append({key: float(value) for key, value in trainer.callback_metrics.items()})


def reference_module(weights):
    module = Classifier().double()
    module.load_state_dict(weights)
    return module


# --- logging ---------------------------------------------------------------------------------------------------------


def test_logged_step_values_are_those_of_the_definition():
    record = Record()
    quiet_trainer(PSPCallback(lam=0.25), record).fit(Classifier(), loader())
    for (features, _), weights, metrics in zip(loader(), record.weights, record.metrics, strict=True):
        z2 = sum(mean_squares(reference_module(weights), features).values()) / 3
        assert metrics["psp/lam"] == 0.25
        assert metrics["psp/z2"] == pytest.approx(z2, rel=1e-6)
        assert metrics["psp/penalty"] == pytest.approx(0.25 * z2, rel=1e-6)


def test_penalty_is_logged_as_the_user_reads_it_under_accumulation():
    record = Record()
    quiet_trainer(PSPCallback(lam=0.25), record, accumulate_grad_batches=2).fit(Classifier(), loader())
    for metrics in record.metrics:
        assert metrics["psp/penalty"] == pytest.approx(0.25 * metrics["psp/z2"], rel=1e-6)


def test_epoch_means_weigh_every_value_the_same():
    torch.manual_seed(0)
    module, data = Classifier(), loader(3)
    data.dataset.tensors = tuple(tensor[:10] for tensor in data.dataset.tensors)  # the last batch is smaller
    trainer = quiet_trainer(PSPCallback(lam=0.0))
    trainer.validate(module, data, verbose=False)
    means = mean_squares(module, data.dataset.tensors[0])
    logged = trainer.callback_metrics
    for layer in LAYERS:
        assert float(logged[f"psp_z2_val/{layer}"]) == pytest.approx(means[layer], rel=1e-6)
    assert float(logged["psp/z2_val"]) == pytest.approx(sum(means.values()) / 3, rel=1e-6)


def test_all_epoch_keys_are_there_and_layers_only_on_request():
    trainer = quiet_trainer(PSPCallback())
    trainer.fit(Classifier(), loader(), loader(1))
    expected = {f"psp_z2_{stage}/{layer}" for stage in ("train", "val") for layer in LAYERS}
    assert expected | {"psp/z2_train", "psp/z2_val", "psp/z2", "psp/lam", "psp/penalty"} <= set(
        trainer.callback_metrics
    )
    trainer.test(Classifier(), loader(1), verbose=False)
    assert {"psp/z2_test", *(f"psp_z2_test/{layer}" for layer in LAYERS)} <= set(trainer.callback_metrics)

    trainer = quiet_trainer(PSPCallback(log_layers=False))
    trainer.fit(Classifier(), loader(), loader(1))
    assert "psp/z2_val" in trainer.callback_metrics
    assert not [key for key in trainer.callback_metrics if key.startswith("psp_z2")]


def test_nothing_is_logged_in_the_sanity_check():
    seen = []

    class Look(Callback):
        def on_sanity_check_end(self, trainer, pl_module):
            seen.append([key for key in trainer.callback_metrics if key.startswith("psp")])

    quiet_trainer(PSPCallback(), Look(), num_sanity_val_steps=2).fit(Classifier(), loader(), loader(2))
    assert seen == [[]]


@pytest.mark.parametrize("order", [1, -1])
def test_other_callbacks_can_monitor_the_values(order):
    callbacks = [
        PSPCallback(),
        EarlyStopping("psp/z2_val"),
        EarlyStopping("psp/z2_train", check_on_train_epoch_end=True),
    ]
    quiet_trainer(*callbacks[::order], max_epochs=2).fit(Classifier(), loader(), loader(1))


def test_values_reach_a_logger(tmp_path):
    logger = CSVLogger(tmp_path)
    quiet_trainer(PSPCallback(), logger=logger, log_every_n_steps=1).fit(Classifier(), loader(), loader(1))
    header = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"psp/lam", "psp/penalty", "psp/z2", "psp/z2_train", "psp/z2_val", "psp_z2_val/first"} <= set(header)


def test_the_users_loss_is_left_alone():
    losses = []
    for lam in (0.0, 0.5):
        torch.manual_seed(0)
        module = Classifier()
        trainer = quiet_trainer(PSPCallback(lam=lam), max_steps=1)
        trainer.fit(module, loader(1))
        losses.append((module.losses[0], float(trainer.callback_metrics["loss"])))
    assert losses[0] == losses[1]


def test_watching_alone_changes_no_gradient():
    gradients = []
    for callbacks in ([], [PSPCallback(lam=0.0)]):
        torch.manual_seed(0)
        module = Classifier()
        quiet_trainer(*callbacks).fit(module, loader())
        gradients.append(module.gradients)
    for without, watched in zip(*gradients, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(without, watched, strict=True))


# --- leaving nothing behind ------------------------------------------------------------------------------------------


class CrashInStep(Classifier):
    def training_step(self, batch, batch_index):
        loss = super().training_step(batch, batch_index)
        if batch_index == 1:
            raise RuntimeError("crash")
        return loss


class CrashInForward(Classifier):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, features):
        hidden = self.relu(self.second(functional.silu(self.first(features))))
        self.calls += 1
        if self.training and self.calls == 2:
            raise RuntimeError("crash")
        return self.third(hidden)


class CrashInBackward(Classifier):
    def on_after_backward(self):
        raise RuntimeError("crash")


class CrashAtStart(Callback):
    def on_fit_start(self, trainer, pl_module):
        raise RuntimeError("crash")


class Interrupt(Classifier):
    def training_step(self, batch, batch_index):
        super().training_step(batch, batch_index)
        raise KeyboardInterrupt


def test_nothing_is_left_after_fit():
    trainer, module = quiet_trainer(PSPCallback()), Classifier().double()
    before = traces(trainer, module)
    trainer.fit(module, loader(), loader(1))
    assert traces(trainer, module) == before
    trainer.test(module, loader(1), verbose=False)
    assert traces(trainer, module) == before


@pytest.mark.parametrize("crashing", [CrashInStep, CrashInForward, CrashInBackward])
def test_nothing_is_left_after_a_crash(crashing):
    callback, module = PSPCallback(), crashing().double()
    trainer = quiet_trainer(callback)
    before = traces(trainer, module)
    with pytest.raises(RuntimeError, match="crash"):
        trainer.fit(module, loader())
    assert traces(trainer, module) == before
    watches = [value for value in vars(callback).values() if type(value).__module__.endswith("callback.watch")]
    assert not watches


@pytest.mark.parametrize("crash_first", [False, True])
def test_nothing_is_left_after_a_crash_at_the_start(crash_first):
    callbacks = [CrashAtStart(), PSPCallback()] if crash_first else [PSPCallback(), CrashAtStart()]
    trainer, module = quiet_trainer(*callbacks), Classifier().double()
    before = traces(trainer, module)
    with pytest.raises(RuntimeError, match="crash"):
        trainer.fit(module, loader())
    assert traces(trainer, module) == before


def test_nothing_is_left_after_an_interrupt():
    trainer, module = quiet_trainer(PSPCallback()), Interrupt().double()
    before = traces(trainer, module)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer.fit(module, loader())
    assert traces(trainer, module) == before


@pytest.mark.parametrize("crashing", [CrashInStep, CrashInForward, CrashInBackward])
def test_the_next_fit_after_a_crash_is_clean(crashing):
    callback = PSPCallback(lam=0.3)
    with pytest.raises(RuntimeError, match="crash"):
        quiet_trainer(callback).fit(crashing(), loader())
    gradients = []
    for used in (callback, PSPCallback(lam=0.3)):
        torch.manual_seed(1)
        module = Classifier()
        quiet_trainer(used).fit(module, loader())
        gradients.append(module.gradients)
    for after_crash, fresh in zip(*gradients, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(after_crash, fresh, strict=True))


def test_a_step_without_loss_is_not_counted_into_the_next():
    class SkipsFirst(Classifier):
        def training_step(self, batch, batch_index):
            loss = super().training_step(batch, batch_index)
            return None if batch_index == 0 else loss

    module, record = SkipsFirst(), Record()
    with pytest.warns(UserWarning, match="returned `None`"):
        quiet_trainer(PSPCallback(lam=0.3), record).fit(module, loader(2))
    features, labels = list(loader(2))[1]
    reference = reference_module(record.weights[1])
    potentials = reference_potentials(reference, features)
    penalty = sum(z.square().mean() for z in potentials.values()) / 3
    loss = functional.cross_entropy(potentials["third"], labels) + 0.3 * penalty
    expected = torch.autograd.grad(loss, list(reference.parameters()))
    for found, wanted in zip(module.gradients[-1], expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


# --- checkpoints and copies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [None, "linear", "learning_rate"])
def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path, schedule):
    def train(max_epochs, checkpoint=None, seed=0):
        torch.manual_seed(seed)
        module = Classifier().double()  # a checkpoint is loaded before Lightning changes the type
        saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        trainer = quiet_trainer(
            PSPCallback(lam=0.3, schedule=schedule), saving, max_epochs=max_epochs, enable_checkpointing=True
        )
        trainer.fit(module, loader(), loader(1), ckpt_path=checkpoint)
        return module.state_dict(), {k: v for k, v in trainer.callback_metrics.items() if k.startswith("psp")}

    weights, metrics = train(4)
    resumed_weights, resumed_metrics = train(4, checkpoint=tmp_path / "epoch=1.ckpt", seed=5)
    assert all(torch.equal(weights[name], resumed_weights[name]) for name in weights)
    assert metrics == resumed_metrics


def test_a_mean_over_an_epoch_survives_a_resume_within_it():
    callback = PSPCallback()
    quiet_trainer(callback).fit(Classifier(), loader())
    buffer = io.BytesIO()
    torch.save(callback.state_dict(), buffer)
    buffer.seek(0)
    restored = PSPCallback()
    restored.load_state_dict(torch.load(buffer, weights_only=True))
    assert restored.state_dict() == callback.state_dict()


@pytest.mark.parametrize("saved_with", [True, False])
def test_resume_with_and_without_the_callback(tmp_path, saved_with):
    def train(with_callback, max_epochs, checkpoint=None):
        callbacks = [ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)]
        callbacks += [PSPCallback()] if with_callback else []
        quiet_trainer(*callbacks, max_epochs=max_epochs, enable_checkpointing=True).fit(
            Classifier(), loader(), ckpt_path=checkpoint
        )

    train(saved_with, 1)
    if saved_with:
        with pytest.warns(UserWarning, match="PSPCallback"):  # Lightning says that its state is not used
            train(False, 2, tmp_path / "epoch=0.ckpt")
    else:
        train(True, 2, tmp_path / "epoch=0.ckpt")


def test_copies_in_the_middle_of_a_training():
    class Copy(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            for callback in (copy.deepcopy(psp), pickle.loads(pickle.dumps(psp))):
                assert callback.state_dict() == psp.state_dict()
            duplicate = copy.deepcopy(pl_module)
            torch.save(pl_module.state_dict(), io.BytesIO())
            with torch.enable_grad():
                duplicate(batch[0]).sum().backward()  # feeds nothing into the original's training

    psp = PSPCallback(lam=0.3)
    gradients = []
    for callbacks in ([psp, Copy()], [PSPCallback(lam=0.3)]):
        torch.manual_seed(0)
        module = Classifier()
        quiet_trainer(*callbacks).fit(module, loader())
        gradients.append(module.gradients)
    for copied, plain in zip(*gradients, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(copied, plain, strict=True))


class WithRate(Classifier):
    rate = 0.1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.rate)


def test_a_second_fit_starts_from_its_own_learning_rate():
    callback, record = PSPCallback(lam=1.0, schedule="learning_rate"), Record()
    for rate in (0.1, 0.4):
        module = WithRate()
        module.rate = rate
        quiet_trainer(callback, record).fit(module, loader(1))
    assert [metrics["psp/lam"] for metrics in record.metrics] == [1.0, 1.0]


def test_fit_twice_with_the_same_callback():
    callback = PSPCallback(lam=0.3)
    gradients = []
    for _ in range(2):
        torch.manual_seed(0)
        module = Classifier()
        quiet_trainer(callback).fit(module, loader())
        gradients.append(module.gradients)
    for first, second in zip(*gradients, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
