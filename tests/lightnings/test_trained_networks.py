"""The critic of a GAN is an output in its generator's step, though it is frozen there; a perceptual network is none."""

from contextlib import contextmanager

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from lightning_psp import PSPCallback
from lightning_psp.lightnings import lightning_private
from tests.support.small import quiet_trainer

LAM = 0.3
# What a generator and its critic minimise, given the critic's values of what was generated and of data.
LOSSES = {
    "least squares": (lambda fake: ((fake - 1) ** 2).mean(), lambda fake, real: (fake**2 + (real - 1) ** 2).mean()),
    "Wasserstein": (lambda fake: -fake.mean(), lambda fake, real: (fake - real).mean()),
    "hinge": (lambda fake: -fake.mean(), lambda fake, real: functional.relu(torch.cat([1 + fake, 1 - real])).mean()),
}


@contextmanager
def toggled(module, optimizer, other):
    module.toggle_optimizer(optimizer)
    yield
    module.untoggle_optimizer(optimizer)


@contextmanager
def frozen(module, optimizer, other):
    other.requires_grad_(False)
    yield
    other.requires_grad_(True)


class Adversaries(LightningModule):
    """A generator and a critic, each of which is frozen in the other's step."""

    def __init__(self, losses, alone, critic_first):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4)).double()
        self.critic = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()
        self.losses, self.alone, self.critic_first = losses, alone, critic_first
        self.found, self.wanted = [], []

    def configure_optimizers(self):
        return [torch.optim.SGD(network.parameters(), 0.1) for network in (self.generator, self.critic)]

    def training_step(self, batch, batch_index):
        noise, real = batch
        of_generator, of_critic = self.optimizers()

        def generate():
            with self.alone(self, of_generator, self.critic):
                loss = self.losses[0](self.critic(self.generator(noise)))
                self.take(loss, of_generator, self.generator, self.reference(noise))

        def criticise():
            with self.alone(self, of_critic, self.generator):
                fake = self.generator(noise).detach()
                self.manual_backward(self.losses[1](self.critic(fake), self.critic(real)))
                of_critic.step()
                of_critic.zero_grad()

        for turn in (criticise, generate) if self.critic_first else (generate, criticise):
            turn()

    def take(self, loss, optimizer, network, wanted):
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.found.append([parameter.grad.clone() for parameter in network.parameters()])
        self.wanted.append(wanted)
        optimizer.step()

    def reference(self, noise):
        """Of the generator: both networks' layers count, and what the generator returned is none."""
        g1, _, g2 = self.generator
        c1, _, c2 = self.critic
        a = noise @ g1.weight.T + g1.bias
        c = ((1 - 2 / ((2 * a).exp() + 1)) @ g2.weight.T + g2.bias) @ c1.weight.T + c1.bias
        d = (1 - 2 / ((2 * c).exp() + 1)) @ c2.weight.T + c2.bias
        loss = self.losses[0](d) + LAM * sum((z**2).mean() for z in (a, c, d)) / 3
        return torch.autograd.grad(loss, list(self.generator.parameters()))


def trained(losses, alone, critic_first):
    torch.manual_seed(0)
    module = Adversaries(losses, alone, critic_first)
    batches = [(torch.randn(3, 2).double(), torch.randn(3, 4).double()) for _ in range(2)]
    trainer = quiet_trainer(PSPCallback(lam=LAM))
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return module


def assert_wanted(module):
    assert len(module.found) == 2
    for found, wanted in zip(module.found, module.wanted, strict=True):
        for one, other in zip(found, wanted, strict=True):
            assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("losses", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("critic_first", [True, False], ids=["critic first", "generator first"])
def test_generator_whose_critic_is_toggled(losses, critic_first):
    assert_wanted(trained(losses, toggled, critic_first))


@pytest.mark.parametrize("losses", LOSSES.values(), ids=LOSSES)
def test_generator_whose_critic_is_frozen_by_hand(losses):
    assert_wanted(trained(losses, frozen, critic_first=True))


def test_without_the_private_name_an_earlier_step_tells(monkeypatch):
    assert hasattr(LightningModule(), lightning_private.STATE_OF_PARAMETERS)
    monkeypatch.setattr(lightning_private, "STATE_OF_PARAMETERS", "_no_such_name")
    assert_wanted(trained(LOSSES["Wasserstein"], toggled, critic_first=True))
    with pytest.raises(AssertionError):
        assert_wanted(trained(LOSSES["Wasserstein"], toggled, critic_first=False))
