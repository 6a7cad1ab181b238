"""What the callback says of itself, once a fit, and the penalty's share of the loss that it logs."""

import logging
import re
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins.precision import Precision
from torch import nn
from torch.nn import functional

from lightning_psp import PSPCallback, psp_penalty, record_potentials
from lightning_psp.callback.first_step import share_of_loss
from lightning_psp.schedules import WarmUp
from tests.support.rows import ByHand
from tests.support.small import Classifier, loader, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


pre_backward = Precision.pre_backward


def fitted(module, callback, caplog, **settings):
    """What was said of the fit, and its trainer."""
    torch.manual_seed(0)
    trainer = quiet_trainer(callback, **settings)
    with caplog.at_level(logging.INFO):
        trainer.fit(module.double(), loader(4))
    return [record.getMessage() for record in caplog.records if "PSPCallback" in record.getMessage()], trainer


def made(kind):
    torch.manual_seed(0)
    return kind()


class Normalised(Classifier):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm1d(8), nn.BatchNorm1d(8)

    def forward(self, features):
        hidden = functional.relu(self.norm1(self.first(features)))
        return self.third(functional.relu(self.norm2(self.second(hidden))))


class Diverges(Classifier):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e4)


def expected(module, lam, count=1):
    """⟨z²⟩ by layer and the share of the penalty, of the first batch."""
    features, labels = next(iter(loader(4)))
    with record_potentials(module.double()) as potentials:
        loss = functional.cross_entropy(module(features), labels)
    penalty = lam * psp_penalty(potentials).item()
    return {layer: z.square().mean().item() for layer, z in potentials.items()}, penalty / loss.item()


def test_layers_strength_share_and_the_largest_layer_are_said_once(caplog):
    module = made(Classifier)
    means, share = expected(module, 0.25)
    (message,), _ = fitted(module, PSPCallback(lam=0.25), caplog, max_epochs=3)
    largest = max(means, key=means.get)
    assert message == (
        f"PSPCallback penalises 3 layers with λ = 0.25. ⟨z²⟩ is largest in {largest!r}: {means[largest]:.3g}, of the"
        f" network {sum(means.values()) / 3:.3g}. The penalty is {share_of_loss(share)}."
    )
    assert 0.001 < share < 1


def test_a_penalty_of_many_times_the_loss_is_said_in_times(caplog):
    module = made(Classifier)
    _, share = expected(module, 1e7)
    (message,), _ = fitted(module, PSPCallback(lam=1e7), caplog, max_steps=1)
    assert 1e5 < share < 1e9
    (times,) = re.findall(r"The penalty is ([\d,]+) times the loss\.", message)
    assert float(times.replace(",", "")) == pytest.approx(share, rel=0.05)


def test_each_fit_has_its_own(caplog):
    callback = PSPCallback(lam=0.25)
    fitted(made(Classifier), callback, caplog)
    messages, _ = fitted(made(Classifier), callback, caplog)
    assert len(messages) == 2


@pytest.mark.parametrize(("lam", "hint"), [(1e-6, "try a larger λ"), (1e3, "try a smaller λ")])
def test_a_share_that_is_negligible_or_dominant_has_a_hint(caplog, lam, hint):
    module = made(Classifier)
    _, share = expected(module, lam)
    (message,), _ = fitted(module, PSPCallback(lam=lam), caplog, max_steps=1)
    assert f"The penalty is {share_of_loss(share)}." in message
    assert hint in message
    assert "batch norm" not in message


@pytest.mark.parametrize(("lam", "is_named"), [(1e-4, True), (0.3, False), (1e3, False)])
def test_batch_norm_is_named_where_it_is_the_reason(caplog, lam, is_named):
    (message,), _ = fitted(made(Normalised), PSPCallback(lam=lam), caplog, max_steps=1)
    assert ("2 of the layers are what batch norm gives" in message) == is_named


def test_one_that_only_watches_says_so(caplog):
    (message,), trainer = fitted(made(Classifier), PSPCallback(lam=0), caplog)
    assert message.startswith("PSPCallback watches 3 layers and penalises none, for λ = 0. ⟨z²⟩ is largest in")
    assert "loss" not in message
    assert trainer.callback_metrics["psp/penalty_share"] == 0.0


def test_a_schedule_that_starts_low_is_told_from_a_small_strength(caplog):
    module = made(Classifier)
    _, share = expected(module, 0.25)
    (message,), _ = fitted(module, PSPCallback(lam=0.25, schedule=WarmUp(steps=4)), caplog, max_epochs=2)
    assert "λ = " in message
    assert "in this step, of 0.25." in message
    assert "try a" not in message
    assert share > 0.001


def test_a_schedule_that_has_not_begun_says_that_nothing_is_penalised_yet(caplog):
    messages, _ = fitted(made(Classifier), PSPCallback(lam=0.25, schedule=WarmUp(steps=4)), caplog, max_steps=1)
    nothing = "PSPCallback watches 3 layers and has penalised none, for the schedule's factor on λ was 0 up to now."
    assert messages == [nothing]


def test_factors_of_zero_say_that_they_penalise_nothing(caplog):
    messages, _ = fitted(made(Classifier), PSPCallback(lam=0.25, layer_lam={"*": 0}), caplog, max_epochs=2)
    assert messages == ["PSPCallback watches 3 layers and penalises none, for `layer_lam` gives each the factor 0."]


def test_a_strength_that_was_found_is_rounded(caplog):
    (message,), _ = fitted(made(Classifier), PSPCallback(lam="auto", schedule=WarmUp(steps=4)), caplog, max_epochs=2)
    of_full = re.search(r"with λ = (\S+) in this step, of (\S+) \(auto", message)
    assert of_full is not None
    assert all(len(number.replace(".", "").lstrip("0")) <= 3 for number in of_full.groups())


def test_accumulated_batches_are_waited_for(caplog):
    class Look(PSPCallback):
        def on_train_batch_end(self, trainer, *args):
            super().on_train_batch_end(trainer, *args)
            said.append((self._say.was_told("first step"), trainer.global_step))

    said = []
    fitted(made(Classifier), Look(lam=0.25), caplog, accumulate_grad_batches=2, max_epochs=1)
    assert said == [(False, 0), (True, 1), (True, 1), (True, 2)]


def test_frozen_layers_are_not_among_those_penalised(caplog):
    module = made(Frozen)
    messages, _ = fitted(module, PSPCallback(lam=0.25), caplog)
    assert messages[0].startswith("PSPCallback penalises 2 layers with")


def test_a_large_penalty_is_named_where_a_training_diverges(caplog):
    with pytest.warns(
        UserWarning, match=r"hold NaN or infinity \(training\).*λ = 10 the penalty was up to .* too large"
    ):
        fitted(made(Diverges), PSPCallback(lam=10), caplog, max_epochs=200)
    with pytest.warns(UserWarning, match=r"hold NaN or infinity \(training\)\.$"):
        fitted(made(Breaks), PSPCallback(lam=1e-3), caplog, max_epochs=2)


class Frozen(Classifier):
    def __init__(self):
        super().__init__()
        self.first.requires_grad_(False)

    def on_after_backward(self):
        """Not all parameters have a gradient."""


class Breaks(Classifier):
    """Its second batch has NaN."""

    def training_step(self, batch, batch_index):
        return super().training_step((batch[0] / (1 - (batch_index == 1)), batch[1]), batch_index)


# --- the share that is logged -----------------------------------------------------------------------------------------


class Keeps(Classifier):
    """Keeps the share that each step should have, from a float64 reference."""

    def __init__(self):
        super().__init__()
        self.shares = []

    def training_step(self, batch, batch_index):
        with torch.no_grad():
            copy = Classifier().double()
            copy.load_state_dict(self.state_dict())
            with record_potentials(copy) as potentials:
                loss = functional.cross_entropy(copy(batch[0]), batch[1])
            self.shares.append(0.25 * psp_penalty(potentials).item() / loss.item())
        return super().training_step(batch, batch_index)

    def on_train_batch_end(self, *args):
        found = self.trainer.callback_metrics["psp/penalty_share"].item()
        assert found == pytest.approx(self.shares[-1], rel=1e-9)


class KeepsByHand(Keeps, ByHand):
    pass


@pytest.mark.parametrize(
    ("kind", "settings"), [(Keeps, {}), (Keeps, {"accumulate_grad_batches": 3}), (KeepsByHand, {})]
)
def test_the_share_is_of_the_loss_as_the_user_reads_it(kind, settings):
    module = kind().double()
    quiet_trainer(PSPCallback(lam=0.25), max_epochs=2, **settings).fit(module, loader(4))
    assert len(module.shares) == 8


class TwoLosses(ByHand):
    """Two backward passes, the second of a negative loss."""

    def training_step(self, batch, batch_index):
        self.optimizers().zero_grad()
        self.losses = [functional.cross_entropy(self(batch[0]), batch[1]), -self(batch[0]).square().mean()]
        for loss in self.losses:
            self.manual_backward(loss)


class Vector(ByHand):
    def training_step(self, batch, batch_index):
        self.optimizers().zero_grad()
        loss = functional.cross_entropy(self(batch[0]), batch[1], reduction="none")
        self.losses = [loss.sum()]
        self.manual_backward(loss, gradient=torch.full_like(loss, 0.5))


def test_a_loss_that_was_scaled_for_half_precision(monkeypatch):
    monkeypatch.setattr(Precision, "pre_backward", scale, raising=True)
    monkeypatch.setattr(Precision, "scaler", SimpleNamespace(get_scale=lambda: 1024.0), raising=False)
    module = Keeps().double()
    quiet_trainer(PSPCallback(lam=0.25)).fit(module, loader(4))
    assert len(module.shares) == 4


def scale(plugin, tensor, module):
    """What a precision plugin with a scaler does before a backward pass."""
    return pre_backward(plugin, tensor * 1024.0, module)


@pytest.mark.parametrize("kind", [TwoLosses, Vector])
def test_sizes_of_several_losses_are_added_up(kind):
    module = kind().double()
    trainer = quiet_trainer(PSPCallback(lam=0.25), max_steps=1, max_epochs=1, limit_train_batches=1)
    trainer.fit(module, loader(1))
    size = sum(abs(loss.item()) for loss in module.losses)
    penalty = trainer.callback_metrics["psp/penalty"].item()
    assert trainer.callback_metrics["psp/penalty_share"].item() == pytest.approx(penalty / size, rel=1e-9)
    assert penalty > 0


@pytest.mark.parametrize("lam", [0.25, 0.0])
def test_a_loss_of_zero(lam):
    class Zero(Classifier):
        def training_step(self, batch, batch_index):
            return self(batch[0]).sum() * 0.0

    trainer = quiet_trainer(PSPCallback(lam=lam))
    trainer.fit(Zero().double(), loader(1))
    share = trainer.callback_metrics["psp/penalty_share"].item()
    assert share == (float("inf") if lam else 0.0)


def test_the_arguments_are_shown():
    callback = PSPCallback(lam=0.25, exclude=("head",), schedule="warmup", entropy=(1, 2))
    assert repr(callback).startswith(
        "PSPCallback(lam=0.25, schedule='warmup', layer_lam=None, include=('*',), exclude="
    )
    assert "exclude=('head',), output=True, reduction='mean'" in repr(callback)
    assert "entropy=(1, 2)" in repr(callback)
    callback.lam = 0.5
    assert repr(callback).startswith("PSPCallback(lam=0.5,")
