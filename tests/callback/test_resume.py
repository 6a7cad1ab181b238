"""A training that stops within an epoch and is taken up again, from each kind of checkpoint."""

from contextlib import nullcontext

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, OnExceptionCheckpoint

from lightning_psp import PSPCallback
from tests.support.followed import LAM, Followed
from tests.support.small import loader, quiet_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:`.fit.ckpt_path=None.` was called without a model"),
    pytest.mark.filterwarnings("ignore:.fit.ckpt_path=.last.. is set"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
BATCHES, EPOCHS = 5, 2


class Resumable:
    """A loader that goes on behind the last batch that was trained on."""

    def __init__(self):
        self.batches = list(loader(BATCHES))
        self.next = 0

    def __len__(self):
        return BATCHES

    def __iter__(self):
        self.next %= BATCHES
        while self.next < BATCHES:
            self.next += 1
            yield self.batches[self.next - 1]

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


class Model(Followed):
    """Keeps the epoch of each step."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def on_train_batch_end(self, *args):
        self.epochs.append(self.current_epoch)


class Crash(Callback):
    """At the end of the backward pass of one step."""

    def __init__(self, step):
        self.step = step

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == self.step:
            raise RuntimeError("crash")


def train(*callbacks, checkpoint=None, seed=0, callback=None, epochs=EPOCHS):
    torch.manual_seed(seed)
    module = Model().double()
    callbacks = (callback or PSPCallback(lam=LAM, schedule="learning_rate"), *callbacks)
    saves = any(isinstance(other, Checkpoint) for other in callbacks)
    trainer = quiet_trainer(*callbacks, max_epochs=epochs, enable_checkpointing=saves)
    crashes = any(isinstance(other, Crash) for other in callbacks)
    with pytest.raises(RuntimeError, match="crash") if crashes else nullcontext():
        trainer.fit(module, Resumable(), loader(1), ckpt_path=checkpoint)
    return module, {key: value.item() for key, value in trainer.callback_metrics.items() if "z2_train" in key}


def saving(folder):
    return ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)


@pytest.mark.parametrize("step", [2, 5, 8])
@pytest.mark.parametrize("crash", [True, False])
def test_a_training_resumed_within_an_epoch_equals_an_uninterrupted_one(tmp_path, step, crash):
    module, metrics = train()
    last_epoch = torch.tensor(module.mean_squares[-BATCHES:]).mean()
    assert metrics["psp/z2_train"] == pytest.approx(last_epoch.item(), rel=1e-6)
    train(saving(tmp_path), *([Crash(step)] if crash else []))
    resumed, resumed_metrics = train(saving(tmp_path), checkpoint=tmp_path / f"step={step}.ckpt", seed=1)
    if resumed.epochs != module.epochs[step:]:
        pytest.skip("this version of Lightning takes the end of an epoch for the middle of it")
    resumed.check(steps=EPOCHS * BATCHES - step)
    assert all(map(torch.equal, module.parameters(), resumed.parameters()))
    assert len(metrics) == 4
    assert resumed_metrics == pytest.approx(metrics, rel=1e-12)


@pytest.mark.parametrize("order", [1, -1])
def test_a_checkpoint_made_by_the_exception_itself(tmp_path, order):
    train(*[OnExceptionCheckpoint(tmp_path, "crashed"), saving(tmp_path), Crash(8)][::order])
    states = [
        torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["callbacks"]["PSPCallback"]
        for name in ("crashed", "step=8")
    ]
    assert states[0] == states[1]
    assert states[0]["first_learning_rate"] == 0.1


def test_the_same_callback_trains_another_model_after_a_crash():
    callback = PSPCallback(lam=LAM)
    train(Crash(2), callback=callback)
    _, expected = train()
    module, metrics = train(callback=callback)
    module.check(steps=EPOCHS * BATCHES)
    assert metrics == pytest.approx(expected, rel=1e-12)


def test_a_checkpoint_of_a_training_without_the_callback(tmp_path):
    plain = quiet_trainer(saving(tmp_path), max_epochs=1, enable_checkpointing=True)
    plain.fit(Model().double(), Resumable())
    callback = PSPCallback(lam=LAM)
    train(Crash(3), callback=callback)
    module, metrics = train(saving(tmp_path), callback=callback, checkpoint=tmp_path / "step=2.ckpt", epochs=1)
    module.check(steps=BATCHES - 2)
    assert metrics["psp/z2_train"] == pytest.approx(torch.tensor(module.mean_squares).mean().item(), rel=1e-6)
