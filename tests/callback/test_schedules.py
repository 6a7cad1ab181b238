"""λ over training."""

from dataclasses import dataclass

import pytest
import torch
from lightning.pytorch import Callback

from lightning_psp import PSPCallback
from lightning_psp.schedules import (
    Constant,
    Linear,
    ProportionalToLearningRate,
    Schedule,
    TrainingProgress,
    WarmUp,
)
from tests.support.small import Classifier, loader, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


class RecordLam(Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, *args):
        self.values.append(float(trainer.callback_metrics["psp/lam"]))


class Decaying(Classifier):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (None, [2, 2, 2, 2, 2, 2]),
        (Constant(), [2, 2, 2, 2, 2, 2]),
        (WarmUp(steps=4), [0, 0.5, 1, 1.5, 2, 2]),
        ("linear", [2, 2 * 5 / 6, 2 * 4 / 6, 1, 2 * 2 / 6, 2 / 6]),
        (Linear(end=2.0), [2, 2 * 7 / 6, 2 * 8 / 6, 3, 2 * 10 / 6, 2 * 11 / 6]),
        ("cosine", [2, 1 + 3**0.5 / 2, 1.5, 1, 0.5, 1 - 3**0.5 / 2]),
        ("learning_rate", [2, 2, 2, 1, 1, 1]),
        (ProportionalToLearningRate(reference=0.2), [1, 1, 1, 0.5, 0.5, 0.5]),
    ],
)
@pytest.mark.parametrize("limit", [{"max_epochs": 2}, {"max_steps": 6, "max_epochs": -1}])
def test_lam_of_each_step(schedule, expected, limit):
    record = RecordLam()
    quiet_trainer(PSPCallback(lam=2.0, schedule=schedule), record, **limit).fit(Decaying(), loader(3))
    assert record.values == pytest.approx(expected)


def test_a_warm_up_of_unknown_length_takes_a_tenth_of_the_training():
    assert WarmUp().factor(TrainingProgress(3, 0.05, 0.1, 0.1)) == pytest.approx(0.5)
    assert WarmUp().factor(TrainingProgress(3, 0.5, 0.1, 0.1)) == 1.0


def test_a_training_without_end_is_an_error_where_the_end_is_needed():
    trainer = quiet_trainer(PSPCallback(schedule="cosine"), max_epochs=-1)
    with pytest.raises(ValueError, match="max_epochs"):
        trainer.fit(Classifier(), loader())


@pytest.mark.parametrize("factor", [-0.5, float("nan"), float("inf")])
def test_a_factor_below_0_or_beyond_all_bounds_is_an_error(factor):
    @dataclass(frozen=True)
    class Own(Schedule):
        def factor(self, progress):
            return factor

    with pytest.raises(ValueError, match=rf"Own\(\) to give a finite factor of at least 0 but got {factor}"):
        quiet_trainer(PSPCallback(schedule=Own())).fit(Classifier(), loader())


def test_a_learning_rate_of_zero_is_no_reference():
    with pytest.raises(ValueError, match="reference"):
        ProportionalToLearningRate().factor(TrainingProgress(0, 0.0, 0.0, 0.0))
