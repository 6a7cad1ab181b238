"""A callback that comes to a trainer, or leaves it, while the trainer fits."""

import gc
import weakref

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.tuner import Tuner

from lightning_psp import PSPCallback
from tests.support.followed import LAM, assert_same, mean_square, potentials, total
from tests.support.small import Classifier, loader, quiet_trainer, traces

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


class Both(Classifier):
    """Keeps the gradient of each step, and the weights and the batch that it should be of."""

    automatic = True

    def __init__(self):
        super().__init__()
        self.weights, self.batches = [], []
        self.automatic_optimization = self.automatic

    def training_step(self, batch, batch_index):
        self.batches.append(batch)
        return super().training_step(batch, batch_index)

    def on_after_backward(self):
        super().on_after_backward()
        self.weights.append({name: value.clone() for name, value in self.state_dict().items()})

    def at(self, step):
        """The module as it was in a step."""
        module = Classifier().double()
        module.load_state_dict(self.weights[step])
        return module

    def z2(self, step):
        with torch.no_grad():
            return float(sum(mean_square(z) for z in potentials(self.at(step), self.batches[step][0])) / 3)

    def check(self, penalised):
        """That these steps of all had a penalty."""
        for step, found in enumerate(self.gradients):
            module = self.at(step)
            value = total(module, self.batches[step], LAM if step in penalised else 0.0)
            assert_same(found, torch.autograd.grad(value, list(module.parameters())))


class ByHand(Both):
    automatic = False

    def training_step(self, batch, batch_index):
        loss = super().training_step(batch, batch_index)
        self.optimizers().zero_grad()
        self.manual_backward(loss)
        self.optimizers().step()


class At(Callback):
    """Does something to the trainer's callbacks at a hook, the given time that it is called."""

    def __init__(self, hook, time, change):
        self.calls = 0

        def call(trainer, *args, **kwargs):
            self.calls += 1
            if self.calls == time:
                change(trainer.callbacks)

        setattr(self, hook, call)


def fit(module, *callbacks, **settings):
    trainer = quiet_trainer(*callbacks, num_sanity_val_steps=0, **{"max_epochs": 2, **settings})
    before = traces(trainer, module.double())
    trainer.fit(module, loader(4), loader(2))
    assert traces(trainer, module) == before
    assert not set(trainer.strategy.__dict__) & {"training_step", "validation_step", "test_step", "teardown"}
    return trainer


# --- that comes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Both, ByHand])
@pytest.mark.parametrize(
    ("hook", "time", "first"),
    [
        ("on_train_start", 1, 0),
        ("on_train_epoch_start", 2, 4),
        ("on_train_batch_start", 3, 2),
        ("on_before_zero_grad", 3, 3),
        ("on_train_batch_end", 2, 2),
        ("on_validation_start", 1, 4),
        ("on_validation_epoch_end", 1, 4),
    ],
)
def test_penalises_from_the_next_batch_on(kind, hook, time, first):
    if kind is ByHand and hook == "on_before_zero_grad":
        return  # Lightning does not call it
    module, callback = kind(), PSPCallback(lam=LAM)
    trainer = fit(module, At(hook, time, lambda callbacks: callbacks.append(callback)))
    module.check(range(first, 8))
    last = [module.z2(step) for step in range(max(first, 4), 8)]
    assert float(trainer.callback_metrics["psp/z2_train"]) == pytest.approx(sum(last) / len(last), rel=1e-6)
    with torch.no_grad():
        layers = [torch.cat(z) for z in zip(*(potentials(module, batch[0]) for batch in loader(2)), strict=True)]
    expected = float(sum(mean_square(z) for z in layers) / 3)
    assert float(trainer.callback_metrics["psp/z2_val"]) == pytest.approx(expected, rel=1e-6)


def test_what_cannot_be_penalised_is_refused_then(monkeypatch):
    def refuse(*args):
        raise NotImplementedError("refused")

    callback = PSPCallback(lam=LAM)
    monkeypatch.setattr("lightning_psp.callback.psp_callback.refuse_training", refuse)
    with pytest.raises(NotImplementedError, match="refused"):
        fit(Both(), At("on_train_batch_end", 2, lambda callbacks: callbacks.append(callback)))


def test_a_second_one_is_refused_then():
    second = PSPCallback(lam=LAM)
    with pytest.raises(RuntimeError, match="takes one PSPCallback, but a second one was added"):
        fit(Both(), PSPCallback(lam=LAM), At("on_train_batch_end", 2, lambda callbacks: callbacks.append(second)))


def test_one_that_was_used_before_starts_anew():
    callback = PSPCallback(lam=LAM, schedule="learning_rate")
    fit(Both(), callback)
    module = Both()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.02)
    trainer = fit(module, At("on_train_batch_end", 1, lambda callbacks: callbacks.append(callback)), max_epochs=1)
    module.check(range(1, 4))
    expected = sum(module.z2(step) for step in (1, 2, 3)) / 3
    assert float(trainer.callback_metrics["psp/z2_train"]) == pytest.approx(expected, rel=1e-6)


# --- that leaves -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Both, ByHand])
@pytest.mark.parametrize(
    ("hook", "time", "last"),
    [
        ("on_train_start", 1, 0),
        ("on_train_batch_start", 3, 2),
        ("on_train_batch_end", 2, 2),
        ("on_train_epoch_end", 1, 4),
        ("on_validation_batch_end", 1, 4),
        ("on_train_batch_end", 8, 8),
        ("on_train_end", 1, 8),
    ],
)
def test_takes_its_wrapping_with_it(kind, hook, time, last, recwarn):
    module, callback = kind(), PSPCallback(lam=LAM)
    fit(module, callback, At(hook, time, lambda callbacks: callbacks.remove(callback)))
    module.check(range(last))
    assert callback._watch is None or hook == "on_train_end"
    assert not [warning for warning in recwarn if "potential" in str(warning.message)]


class LeavesInStep(ByHand):
    """The callback leaves between a forward and a backward pass."""

    def training_step(self, batch, batch_index):
        if batch_index == 1:
            self.trainer.callbacks[:] = [each for each in self.trainer.callbacks if type(each) is not PSPCallback]
        super().training_step(batch, batch_index)


def test_leaves_in_a_step(recwarn):
    module = LeavesInStep()
    fit(module, PSPCallback(lam=LAM), max_epochs=1)
    module.check([0])
    assert not [warning for warning in recwarn if "backward" in str(warning.message)]


def test_one_takes_the_place_of_another():
    module, first, second = Both(), PSPCallback(lam=0.0), PSPCallback(lam=LAM)

    def swap(callbacks):
        callbacks[callbacks.index(first)] = second

    fit(module, first, At("on_train_batch_end", 2, swap))
    module.check(range(2, 8))


def test_one_that_comes_back():
    module, callback = Both(), PSPCallback(lam=LAM)
    leave = At("on_train_batch_end", 2, lambda callbacks: callbacks.remove(callback))
    come = At("on_train_batch_end", 4, lambda callbacks: callbacks.append(callback))
    fit(module, leave, come, callback)
    module.check([0, 1, 4, 5, 6, 7])


class Forwarding(Callback):
    """Holds the callback, which the trainer does not know, and hands the hooks on."""

    def __init__(self, callback):
        for hook in dir(Callback):
            if hook.startswith("on_") or hook in ("setup", "teardown"):
                setattr(self, hook, getattr(callback, hook))


def test_one_that_the_trainer_never_had():
    module = Both()
    fit(module, Forwarding(PSPCallback(lam=LAM)))
    module.check(range(8))


def test_a_search_for_a_learning_rate_beforehand(tmp_path):
    """Lightning takes all callbacks away for it."""
    module, callback = Both(), PSPCallback(lam=LAM)
    module.lr = 0.1
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=module.lr)
    trainer = quiet_trainer(callback, default_root_dir=tmp_path)
    Tuner(trainer).lr_find(module, loader(4), num_training=4)
    module.gradients, module.weights, module.batches = [], [], []
    trainer.fit(module, loader(4))
    module.check(range(4))


class RunsOut(Classifier):
    """Runs out of memory behind its nonlinearity."""

    potential = None

    def forward(self, features):
        z = self.first(features)
        self.potential = weakref.ref(z)
        torch.nn.functional.silu(z)  # whose node holds z
        raise RuntimeError("out of memory")


class TriesAStep(Callback):
    """Catches what a step raises and goes on, as Lightning's search for a batch size does."""

    def on_train_start(self, trainer, pl_module):
        with pytest.raises(RuntimeError, match="out of memory"):
            trainer.strategy.training_step(next(iter(loader())), 0)
        gc.collect()
        self.is_alive = pl_module.potential() is not None


def test_a_step_that_is_caught_leaves_no_potential():
    trying = TriesAStep()
    trainer = quiet_trainer(PSPCallback(), trying)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.fit(RunsOut(), loader())
    assert not trying.is_alive
