"""Potentials of a training step that has ended: a later loss that reaches them is said to have no penalty on them."""

import gc
import warnings
import weakref

import pytest
import torch
from torch.nn import functional

from lightning_psp import PSPCallback
from tests.support.followed import LAM, Followed
from tests.support.small import Classifier, loader, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


class EverySecond(Classifier):
    """Adds the losses of two steps up and returns their sum from the second one."""

    def training_step(self, batch, batch_index):
        loss = functional.cross_entropy(self(batch[0]), batch[1])
        if batch_index % 2 == 0:
            self.former = loss
            return None
        return self.former + loss


class ByHand(EverySecond):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_index):
        loss = super().training_step(batch, batch_index)
        if loss is not None:
            self.manual_backward(loss)


class Carried(Classifier):
    """Calls the network for the loss of the next step of an accumulation, beside that of its own."""

    def training_step(self, batch, batch_index):
        loss = functional.cross_entropy(self(batch[0]), batch[1])
        if batch_index % 2 == 1:
            loss = loss + self.carried
        self.carried = self(2 * batch[0]).mean()
        return loss


def fit(module, **settings):
    accumulate = 2 if isinstance(module, Carried) else 1  # between steps of an optimiser, which overwrite weights
    trainer = quiet_trainer(PSPCallback(**{"lam": LAM, **settings}), accumulate_grad_batches=accumulate)
    trainer.fit(module.double(), loader(4))


@pytest.mark.parametrize(
    ("kind", "layers"),
    [(EverySecond, "first, second, third"), (Carried, "first, second"), (ByHand, "first, second, third")],
)
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_loss_of_several_steps_is_said(kind, layers):
    with pytest.warns(UserWarning, match=f"a training step that had ended.*{layers}.*within one") as told:
        fit(kind())
    assert len([each for each in told if "had ended" in str(each.message)]) == 1


class Skipping(Followed):
    """Keeps what a step without a loss has computed, which no loss uses."""

    def training_step(self, batch, batch_index):
        if batch_index % 2 == 0:
            self.kept = self(batch[0])
            return None
        return super().training_step(batch, batch_index)


class Detached(Skipping):
    def training_step(self, batch, batch_index):
        loss = super().training_step(batch, batch_index)
        return None if loss is None else loss + self.kept.detach().sum() * 0.0


@pytest.mark.parametrize("kind", [Skipping, Detached])
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_nothing_is_said_where_a_loss_does_not_reach_them(kind):
    torch.manual_seed(0)
    module = kind()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit(module)
    module.check(steps=2)
    assert not [each for each in told if "had ended" in str(each.message)]


@pytest.mark.parametrize("settings", [{"lam": 0.0}, {"include": ("third",)}], ids=str)
def test_nothing_is_said_of_layers_without_a_penalty(settings):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit(Carried(), **settings)
    assert not [each for each in told if "had ended" in str(each.message)]


class Kept:
    """Lies in a graph, and is gone when that is."""


class Dropping(Classifier):
    """Has steps without a loss, and looks whether their graphs are gone in the next one."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def training_step(self, batch, batch_index):
        assert not any(kept() is not None for kept in self.kept)
        node = self(batch[0]).grad_fn
        node.metadata["test"] = Kept()
        self.kept.append(weakref.ref(node.metadata["test"]))


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`", "ignore:No penalty was added in this epoch")
def test_no_graph_is_kept():
    module = Dropping()
    gc.disable()
    try:
        fit(module)
    finally:
        gc.enable()
    assert len(module.kept) == 4
