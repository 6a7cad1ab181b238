"""Backward passes elsewhere than where the penalty is added: what is said of them."""

import warnings

import pytest
import torch
from torch.nn import functional

from lightning_psp import PSPCallback
from tests.support.followed import LAM, Followed
from tests.support.small import Classifier, loader, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


def messages(module, batches=2, **settings):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        quiet_trainer(PSPCallback(**{"lam": LAM, **settings})).fit(module.double(), loader(batches))
    return [str(each.message) for each in told if "backward" in str(each.message)]


class Trained(Classifier):
    """Manual optimisation with a backward pass in each step."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_index):
        self.batch = batch
        self.take_backward()

    def take_backward(self):
        self.manual_backward(functional.cross_entropy(self(self.batch[0]), self.batch[1]))


class BehindStep(Trained):
    def on_train_batch_end(self, *args):
        self.take_backward()


class BehindEpoch(Trained):
    def on_train_epoch_end(self):
        self.take_backward()


class OfStep(Trained):
    """Takes the step's own loss backward behind it."""

    def take_backward(self):
        self.loss = functional.cross_entropy(self(self.batch[0]), self.batch[1])

    def on_train_batch_end(self, *args):
        self.manual_backward(self.loss)


@pytest.mark.parametrize(
    ("kind", "said"), [(BehindStep, "outside"), (BehindEpoch, "outside"), (OfStep, "had ended.*first, second, third")]
)
def test_a_backward_of_manual_optimisation_outside_the_step_is_said(kind, said):
    with pytest.warns(UserWarning, match=said):
        quiet_trainer(PSPCallback(lam=LAM)).fit(kind().double(), loader(2))


@pytest.mark.parametrize("kind", [BehindStep, BehindEpoch, OfStep])
def test_nothing_is_said_without_a_penalty(kind):
    assert messages(kind(), lam=0.0) == []


def test_nothing_is_said_of_a_step_alone():
    assert messages(Trained()) == []


class Attacked(Followed):
    """Trains on inputs that a backward pass within the step has found."""

    def training_step(self, batch, batch_index):
        features = batch[0].clone().requires_grad_()
        functional.cross_entropy(self(features), batch[1]).backward()
        return super().training_step((batch[0] + 0.1 * features.grad.sign(), batch[1]), batch_index)


def test_what_is_said_of_an_attack_holds():
    torch.manual_seed(0)
    module = Attacked()
    (message,) = messages(module)
    module.check(steps=2)  # the gradients of the first backward pass are gone
    assert "drops its gradients" in message
    assert "set `self.automatic_optimization = False`" in message
