"""Weights that an optimiser of Lightning's is kept from for a while are still the network's."""

import pytest
import torch
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader

from lightning_psp import PSPCallback
from tests.support.layers.case import expected
from tests.support.layers.cases_frozen import fooled
from tests.support.layers.table import BY_NAME
from tests.support.layers.watched import PREFIX, assert_gradients, assert_layers, gradients_of, logged_layers
from tests.support.small import quiet_trainer

CASE = BY_NAME["frozen discriminator"]


class Toggled(LightningModule):
    """The generator's step of a pair of adversaries, as Lightning's documentation writes it."""

    def __init__(self, network):
        super().__init__()
        self.automatic_optimization = False
        self.network, self.gradients = network, {}

    def training_step(self, batch, batch_index):
        generator, _ = self.optimizers()
        self.toggle_optimizer(generator)
        self.manual_backward(fooled(self.network, batch))
        self.gradients = gradients_of(self.network)
        generator.step()
        self.untoggle_optimizer(generator)

    def configure_optimizers(self):
        parts = self.network.generator, self.network.discriminator
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in parts]


def trained(lam):
    network, batch = CASE.build()
    module, trainer = Toggled(network.requires_grad_(True)), quiet_trainer(PSPCallback(lam=lam))
    trainer.fit(module, DataLoader([batch], batch_size=None))
    return module, trainer


def test_penalty_and_gradient_while_an_optimiser_is_toggled():
    wanted = expected(CASE)
    lam = wanted.balanced_lam()
    module, trainer = trained(lam)
    assert set(module.gradients) == set(wanted.gradients(lam))
    assert_gradients(module.gradients, wanted.gradients(lam))
    assert trainer.callback_metrics["psp/penalty"].item() == pytest.approx(lam * wanted.penalty.item(), rel=1e-5)


def test_layers_while_an_optimiser_is_toggled():
    _, trainer = trained(0.5)
    assert_layers(logged_layers(trainer), expected(CASE).mean_squares, PREFIX, rel=1e-5)
