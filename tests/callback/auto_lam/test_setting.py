"""λ set as an attribute, before a training and in the middle of one."""

import copy
import math

import pytest
import torch
from lightning.pytorch import Callback

from lightning_psp import PSPCallback
from tests.support.auto_lam import Lams
from tests.support.rows import ByHand
from tests.support.small import Classifier, loader, quiet_trainer, traces

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


class Sets(Callback):
    """Sets λ before one of the steps."""

    def __init__(self, lam, step=5):
        self.lam, self.step = lam, step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.step:
            trainer.callbacks[1].lam = self.lam


def fitted(lam, later, kind=Classifier):
    torch.manual_seed(0)
    trainer = quiet_trainer(Sets(later), PSPCallback(lam=lam, entropy=()), lams := Lams())
    trainer.fit(kind().double(), loader(12))
    return lams.values


@pytest.mark.parametrize("lam", ["auto", 0.25])
def test_a_number(lam):
    values = fitted(lam, 1)
    assert values[5:] == [1.0] * 7
    assert all(math.isclose(value, fitted(lam, lam)[0]) for value in values[:5])


def test_from_found_to_given_and_back():
    callback = PSPCallback(lam="auto", entropy=())
    callback.lam = 0.5
    callback.lam = "auto"
    assert callback.lam == copy.deepcopy(callback).lam == "auto"


@pytest.mark.parametrize("lam", [-1, "big", None, math.nan, True])
def test_what_is_no_lam(lam):
    callback = PSPCallback(lam=0.5)
    with pytest.raises((ValueError, TypeError), match="Expected argument `lam` to be a"):
        callback.lam = lam
    assert callback.lam == 0.5
    with pytest.raises((ValueError, TypeError), match="Expected argument `lam` to be a"):
        fitted(0.1, lam)


@pytest.mark.parametrize("kind", [Classifier, ByHand])
def test_a_training_that_was_not_prepared_for_it(kind):
    module = kind().double()
    before = traces(trainer := quiet_trainer(Sets("auto"), PSPCallback(lam=0.1, entropy=())), module)
    with pytest.raises(NotImplementedError, match=r"was set to 'auto' while a fit ran.*before the fit starts"):
        trainer.fit(module, loader(12))
    assert traces(trainer, module)["strategy"] == before["strategy"]
