"""What is said once where a layer may not be the one that was meant."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_psp import PSPCallback
from tests.support.small import Classifier, loader, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


def messages(module, caplog, **arguments):
    with caplog.at_level(logging.INFO):
        quiet_trainer(PSPCallback(**arguments), max_epochs=2).fit(module.double(), loader())
    said = [record.getMessage() for record in caplog.records]
    return [message for message in said if "taken for a part" in message or "lies inside" in message]


class TiedInTheStep(Classifier):
    """The logits are made by a function, so that no module is called with the result of the last nonlinearity."""

    def training_step(self, batch, batch_index):
        hidden = functional.gelu(self.second(self.first(batch[0])))
        return functional.cross_entropy(functional.linear(hidden, self.third.weight, self.third.bias), batch[1])


class Hinge(Classifier):
    def training_step(self, batch, batch_index):
        return functional.relu(1.0 - self(batch[0])).mean()


@pytest.mark.parametrize(
    ("kind", "layers"), [(TiedInTheStep, ["second", "third"]), (Hinge, ["first", "second", "third"])]
)
@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_nonlinearities_in_the_step_before_and_behind_the_output(kind, layers, is_compiled):
    module = kind()
    if is_compiled:
        module.training_step = torch.compile(module.training_step, backend="aot_eager")
    trainer = quiet_trainer(PSPCallback())
    trainer.fit(module.double(), loader())
    assert [key.partition("/")[2] for key in trainer.callback_metrics if key.startswith("psp_z2_train")] == layers


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Mish(nn.Module):
    def forward(self, x):
        return x * torch.tanh(functional.softplus(x))


class Swish(nn.Module):
    """What enters the sigmoid is what entered the module."""

    def forward(self, x):
        return x * torch.sigmoid(x)


class Gate(nn.Module):
    """What enters the sigmoid is a part of what entered the module."""

    def forward(self, x):
        values, gates = x.chunk(2, dim=1)
        return torch.cat([values * torch.sigmoid(gates)] * 2, dim=1)


class Sum(nn.Module):
    """Not an activation, and made of none."""

    def forward(self, x):
        return functional.relu(x + 1.0)


class With(Classifier):
    def __init__(self, act):
        super().__init__()
        self.act = act

    def forward(self, features):
        return self.third(self.act(self.second(torch.tanh(1.0 + self.first(features)))))


@pytest.mark.parametrize("act", [QuickGELU, Mish])
def test_of_an_activation_written_out_nothing_has_to_be_told(act, caplog):
    assert messages(With(act()), caplog) == []


@pytest.mark.parametrize("act", [Swish, Gate, Sum, nn.SiLU, nn.Mish, nn.Tanhshrink])
def test_other_activations_are_not(act, caplog):
    assert messages(With(act()), caplog) == []
