"""Networks that run without gradient, whatever the step makes of what they return, and others that nobody watches."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_psp import PSPCallback, record_potentials
from tests.support.small import CLASSES, FEATURES, Classifier, loader, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


def network():
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES))


def of_logarithms(student, teacher):
    target = teacher.log_softmax(1)
    return functional.kl_div(student.log_softmax(1), target, log_target=True, reduction="batchmean")


LOSSES = {
    "probabilities": lambda student, teacher: functional.cross_entropy(student, teacher.softmax(1)),
    "logarithms": of_logarithms,
    "sigmoid": lambda student, teacher: functional.mse_loss(student.sigmoid(), teacher.sigmoid()),
    "sigmoid of a sum": lambda student, teacher: functional.mse_loss(student.sigmoid(), (teacher + 1).sigmoid()),
    "nonlinearity": lambda student, teacher: functional.mse_loss(student, teacher.relu()),
    "as it is": functional.mse_loss,
}


class Masked(nn.Sequential):
    """Returns a mask, which is made of data, beside the logits."""

    def forward(self, x):
        return super().forward(x), (x > 0).to(x)


class Distilled(Classifier):
    def __init__(self, loss, is_constant):
        super().__init__()
        self.network, self.teacher = Masked(*network()), network()
        self.loss, self.is_constant = loss, is_constant
        self.teacher.requires_grad_(False)

    def training_step(self, batch, batch_index):
        with torch.set_grad_enabled(self.is_constant):
            target = 2 * self.teacher(batch[0])
        return self.loss(self.network(batch[0])[0], target)

    def on_after_backward(self):
        """Keeps nothing, for some layers have no gradient."""


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_teacher_without_gradient_is_not_counted(loss):
    trainer = quiet_trainer(PSPCallback())
    trainer.fit(Distilled(loss, is_constant=False).double(), loader())
    found = {key.partition("/")[2] for key in trainer.callback_metrics if key.startswith("psp_z2_train/")}
    assert found == {"network.0", "network.2"}


def test_a_frozen_network_that_is_called_with_gradient_is_shown():
    trainer = quiet_trainer(PSPCallback())
    trainer.fit(Distilled(of_logarithms, is_constant=True).double(), loader())
    found = {key.partition("/")[2] for key in trainer.callback_metrics if key.startswith("psp_z2_train/")}
    assert found == {"network.0", "network.2", "teacher.0", "teacher.2"}


def test_a_copy_of_the_network_is_another_one():
    deep = nn.Sequential(*network()[:2], nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    averaged = copy.deepcopy(deep)
    with pytest.raises(ValueError, match="the model was not called"), record_potentials(deep):
        functional.cross_entropy(averaged(torch.randn(4, FEATURES)), torch.tensor([0, 1, 2, 0]))
