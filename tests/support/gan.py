"""A pair of networks under manual optimisation that writes down its gradients."""

import torch
from torch import nn
from torch.nn import functional

from tests.support.small import BATCH, FEATURES, Classifier


class Gan(Classifier):
    """Updates a generator, then a discriminator that sees real and generated features as one layer each."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(2, 5), nn.ReLU(inplace=True), nn.Linear(5, FEATURES), nn.Tanh())
        self.discriminator = nn.Sequential(nn.Linear(FEATURES, 5), nn.LeakyReLU(0.2, inplace=True), nn.Linear(5, 1))
        self.noise = torch.randn(BATCH, 2, dtype=torch.float64)
        self.found = []

    def on_after_backward(self):
        pass

    def training_step(self, batch, batch_index):
        features, _ = batch
        generator_optimizer, discriminator_optimizer = self.optimizers()
        fake = self.generator(self.noise)
        score = self.discriminator(fake)
        loss = functional.binary_cross_entropy_with_logits(score, torch.ones_like(score))
        self.manual_backward(loss)
        self.found.append([parameter.grad.clone() for parameter in self.generator.parameters()])
        generator_optimizer.zero_grad()
        discriminator_optimizer.zero_grad()

        real_score, fake_score = self.discriminator(features), self.discriminator(fake.detach())
        loss = functional.binary_cross_entropy_with_logits(real_score, torch.ones_like(real_score))
        loss = loss + functional.binary_cross_entropy_with_logits(fake_score, torch.zeros_like(fake_score))
        self.manual_backward(loss)
        self.found.append([parameter.grad.clone() for parameter in self.discriminator.parameters()])

    def configure_optimizers(self):
        return torch.optim.SGD(self.generator.parameters(), 0.1), torch.optim.SGD(self.discriminator.parameters(), 0.1)
