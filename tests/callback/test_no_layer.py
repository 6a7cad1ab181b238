"""A training without a layer to penalise or to watch is an error that lists what is there."""

import pytest
from torch import nn
from torch.nn import functional

from lightning_psp import PSPCallback
from tests.support.small import CLASSES, FEATURES, Classifier, loader, quiet_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    # With manual optimisation a step may run a part of the model only: the error comes at the end of the epoch.
    pytest.mark.filterwarnings("ignore:A backward pass reached no potential"),
]


class Partial(Classifier):
    """Some parameters have no gradient."""

    def on_after_backward(self):
        """Nothing is kept."""


class Linear(Partial):
    def __init__(self):
        super().__init__()
        self.only = nn.Linear(FEATURES, CLASSES)

    def forward(self, features):
        return self.only(features)


class Empty(Partial):
    """Calls the network with no sample."""

    def training_step(self, batch, batch_index):
        return self(batch[0][:0]).sum()


def test_batches_without_samples_are_named():
    with pytest.raises(ValueError, match=r"No potential was found: the batches .* have no samples"):
        quiet_trainer(PSPCallback()).fit(Empty(), loader())


class ByHand(Partial):
    """Its first step trains a part of the network that is linear."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.only = nn.Linear(FEATURES, CLASSES)

    def training_step(self, batch, batch_index):
        features, labels = batch
        logits = self.only(features) if batch_index == 0 else self(features)
        self.manual_backward(functional.cross_entropy(logits, labels))


class LinearByHand(ByHand, Linear):
    pass


@pytest.mark.parametrize("lam", [0.0, 0.1])
@pytest.mark.parametrize("kind", [Linear, LinearByHand])
def test_a_linear_network_without_its_output(kind, lam):
    with pytest.raises(ValueError, match=r"No layer is left .*output=False. The layers of this model are: only\."):
        quiet_trainer(PSPCallback(lam, output=False)).fit(kind(), loader())


def test_in_a_validation():
    with pytest.raises(ValueError, match="The layers of this model are: only"):
        quiet_trainer(PSPCallback(output=False)).validate(Linear(), loader(1), verbose=False)


def test_patterns_that_leave_no_layer():
    with pytest.raises(ValueError, match=r"exclude=\('\*',\).* are: first, second, third\.$"):
        quiet_trainer(PSPCallback(exclude=("*",))).fit(Classifier(), loader())


def test_a_linear_network_with_its_output():
    trainer = quiet_trainer(PSPCallback())
    trainer.fit(Linear(), loader())
    assert "psp_z2_train/only" in trainer.callback_metrics


@pytest.mark.parametrize("validations", [0, 1])
def test_a_first_step_that_trains_a_linear_part(validations):
    trainer = quiet_trainer(PSPCallback(output=False), val_check_interval=1, limit_val_batches=validations)
    module = ByHand()
    module.validation_step = lambda batch: module.only(batch[0])
    trainer.fit(module, loader(), loader(1))
    assert "psp_z2_train/first" in trainer.callback_metrics


# --- layers of a validation ------------------------------------------------------------------------------------------


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(FEATURES, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def encode(self, x):
        return self.second(functional.silu(self.first(x)))

    def forward(self, x):
        return self.head(functional.relu(self.encode(x) + 1.0))


class Pretrained(Partial):
    """Trains the encoder by a method of its own, and validates the whole network."""

    def __init__(self):
        super().__init__()
        self.network = Encoder()

    def forward(self, features):
        return self.network(features)

    def training_step(self, batch, batch_index):
        return functional.cross_entropy(self.network.encode(batch[0])[:, :CLASSES], batch[1])


def test_layers_that_only_a_validation_has():
    with pytest.warns(UserWarning, match="Layers seen in validation") as said:
        quiet_trainer(PSPCallback()).fit(Pretrained(), loader(), loader(1))
    (message,) = (str(each.message) for each in said if "Layers seen in validation" in str(each.message))
    assert "network.head" in message
    assert "training does not call them" in message
    assert "network.first" not in message
