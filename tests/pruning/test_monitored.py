"""What a search goes by has to be a loss of the weights that it tries out."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_psp.pruning import LobsterPruning
from tests.support.pruning.lobster import AT_ONCE, Model, assert_same, train
from tests.support.small import traces


class Averages(Model):
    """Has averages of its weights."""

    def on_fit_start(self):
        self.average = [parameter.detach().clone() for parameter in self.parameters()]

    def on_train_batch_end(self, *_):
        super().on_train_batch_end()
        for average, parameter in zip(self.average, self.parameters(), strict=True):
            average.lerp_(parameter.detach(), 0.1)

    @contextmanager
    def averaged(self):
        self.swap()
        yield
        self.swap()

    @torch.no_grad()
    def swap(self):
        kept = [parameter.detach().clone() for parameter in self.parameters()]
        for average, parameter in zip(self.average, self.parameters(), strict=True):
            parameter.data.copy_(average)
        self.average = kept


class InHooksOfTheEpoch(Averages):
    on_validation_epoch_start = on_validation_epoch_end = Averages.swap


class InHooksOfTheValidation(Averages):
    on_validation_start = on_validation_end = Averages.swap


class InTheStep(Averages):
    def validation_step(self, batch, batch_index):
        with self.averaged():
            super().validation_step(batch, batch_index)


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (InHooksOfTheEpoch, RuntimeError, "'first.weight' gets other weights when a validation starts"),
        (InHooksOfTheValidation, RuntimeError, "'first.weight' gets other weights when a validation starts"),
        (InTheStep, ValueError, "needs a loss of the weights that are trained, but it is .* with all prunable weights"),
    ],
)
def test_averages_that_the_module_validates_by_itself(kind, error, message):
    pruning, module = LobsterPruning(**AT_ONCE), kind()
    with pytest.raises(error, match=message):
        train(pruning, module=module)
    assert pruning.history == []
    assert all(mask.all() for mask in pruning.masks.values())


def test_an_error_of_a_search_leaves_the_best_weights():
    module = InTheStep()
    with pytest.raises(ValueError, match="needs a loss"):
        train(pruning := LobsterPruning(**AT_ONCE), module=module)
    assert_same(module.state_dict(), module.weights[1])
    assert traces(module.trainer, module)["strategy"] == []
    assert pruning._steps is None


class Logs(Model):
    def validation_step(self, batch, batch_index):
        output = self(batch[0])
        self.log("val_loss", self.value(output, batch[1]))


class Accuracy(Logs):
    def value(self, output, labels):
        return (output.argmax(1) == labels).double().mean()


class Error(Logs):
    """Few weights more or less often do not change it."""

    def value(self, output, labels):
        return (output.argmax(1) != labels).double().mean()


class Loss(Logs):
    def value(self, output, labels):
        return functional.cross_entropy(output, labels)


def test_a_value_that_falls_without_weights_is_said():
    with pytest.warns(UserWarning, match=r"'val_loss' fell from 0.9\d* to 0.\d* when weights were set to 0"):
        train(LobsterPruning(**AT_ONCE), module=Accuracy(), epochs=3)


@pytest.mark.filterwarnings("error:LobsterPruning")
@pytest.mark.parametrize("kind", [Error, Loss])
def test_nothing_is_said_of_losses(kind):
    train(pruning := LobsterPruning(**AT_ONCE), module=kind(), epochs=6)
    assert pruning.history[0].threshold > 0


@pytest.mark.filterwarnings("error:LobsterPruning")
def test_a_limit_at_which_nothing_changes_is_no_error():
    train(pruning := LobsterPruning(**AT_ONCE, max_sparsity=0.01), module=Error(), epochs=6)
    (step,) = pruning.history
    assert step.loss_after == step.loss_before
    assert step.evaluations <= 15
    assert step.sparsity > 0


class Largest(Model):
    """Has many weights, of which the largest alone counts."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(300, 300, bias=False).double()
        self.wide.weight.data.mul_(1000)  # so that the search starts far from its end

    def validation_step(self, batch, batch_index):
        self.log("val_loss", self.wide.weight.abs().max())


@pytest.mark.filterwarnings("error:LobsterPruning")
def test_a_search_in_which_nothing_changes_takes_no_evaluation_more():
    """The one that finds out whether anything would is among the fifteen."""
    train(pruning := LobsterPruning(**AT_ONCE, max_sparsity=0.9), module=Largest(), epochs=2)
    assert pruning.history[0].evaluations == 15
    assert pruning.history[0].loss_after == pruning.history[0].loss_before


def test_a_trainer_that_logs_nothing():
    names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    with pytest.raises(ValueError, match=r"prunes by what is logged, and Trainer.barebones=True. logs nothing"):
        train(LobsterPruning(), barebones=True, **dict.fromkeys(names))


class Meter:
    """No module."""

    def __init__(self):
        self.losses = []


class Gathers(Model):
    """Lets go of what a validation has gathered when the next epoch starts, not when the next validation does."""

    def __init__(self):
        super().__init__()
        self.meter = Meter()

    def on_train_epoch_start(self):
        self.meter.losses.clear()

    def validation_step(self, batch, batch_index):
        self.meter.losses.append(functional.cross_entropy(self(batch[0]), batch[1]))

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        self.log("val_loss", torch.stack(self.meter.losses).mean())


class Draws(Model):
    def validation_step(self, batch, batch_index):
        self.log("val_loss", functional.cross_entropy(self(batch[0]), batch[1]) * (1 + 9 * torch.rand(())))


@pytest.mark.parametrize("kind", [Gathers, Draws])
def test_a_validation_that_cannot_be_repeated_is_said_once(kind, recwarn):
    """Of weights that grow worse, so that the best are not the last ones."""
    train(pruning := LobsterPruning(lam=0.2, patience=2, tolerance=0.1), module=kind(), epochs=8, min_epochs=8)
    assert len(pruning.history) > 1
    (message,) = [str(each.message) for each in recwarn if "when validated once more" in str(each.message)]
    assert message.startswith("LobsterPruning: 'val_loss' was ")
