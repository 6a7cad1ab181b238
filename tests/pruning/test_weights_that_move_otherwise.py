"""Masks hold, and nothing else is disturbed, where weights move outside of a step of their own optimiser."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_psp.pruning import LobsterPruning, MaskedTraining, apply_masks
from tests.support.pruning.networks import NETWORKS
from tests.support.pruning.training import Pruned, assert_held, assert_state, fit, masks_for, sgd


class TwoSets(torch.optim.SGD):
    """Trains by weights between those of the steps and their average; the average is what is validated."""

    def __init__(self, parameters, by_data):
        super().__init__(parameters, lr=0.05)
        self.by_data = by_data
        self.is_training = True
        self.fast = [parameter.detach().clone() for parameter in self.parameters()]

    def parameters(self):
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def move(self, weight):
        for parameter, fast in zip(self.parameters(), self.fast, strict=True):
            (parameter.data if self.by_data else parameter).lerp_(fast, weight)

    def step(self, closure):
        loss = closure()
        self.move(0.1)
        with torch.no_grad():
            for parameter, fast in zip(self.parameters(), self.fast, strict=True):
                fast.sub_(parameter.grad, alpha=0.05)
        return loss

    def train(self):
        if not self.is_training:
            self.move(0.1)
        self.is_training = True

    def eval(self):
        if self.is_training:
            self.move(1 - 1 / 0.9)
        self.is_training = False


class Averaged(Pruned):
    def on_validation_epoch_start(self):
        self.trainer.optimizers[0].eval()

    def on_validation_epoch_end(self):
        self.trainer.optimizers[0].train()


@pytest.mark.parametrize("by_data", [False, True])
def test_an_optimiser_with_two_sets_of_weights(by_data):
    """The other set comes into the module in the middle of an epoch, without a step."""
    torch.manual_seed(0)
    module = Averaged(NETWORKS["lenet300"](), lambda parameters: TwoSets(parameters, by_data))
    fit(module, MaskedTraining(masks_for(module)), val_check_interval=1)
    assert_held(module)


class Lookahead(torch.optim.Optimizer):
    """A wrapper as libraries have it, whose constructor does not call that of its base."""

    def __init__(self, optimizer):
        self.optimizer, self.param_groups, self.defaults = optimizer, optimizer.param_groups, {}
        self.state = optimizer.state
        self.slow = [parameter.detach().clone() for group in self.param_groups for parameter in group["params"]]

    def step(self, closure=None):
        loss = self.optimizer.step(closure)
        fast = [parameter for group in self.param_groups for parameter in group["params"]]
        for parameter, slow in zip(fast, self.slow, strict=True):
            parameter.data.copy_(slow.lerp_(parameter.data, 0.5))
        return loss


@pytest.mark.parametrize("kind", ["masked", "lobster"])
def test_a_wrapper_that_tells_nobody_of_its_steps(kind):
    module = Pruned(NETWORKS["lenet300"](), lambda parameters: Lookahead(sgd()(parameters)))
    callback = MaskedTraining(masks_for(module)) if kind == "masked" else LobsterPruning()
    with pytest.raises(NotImplementedError, match="not told of the steps of Lookahead, whose constructor does not"):
        fit(module, callback)


class Gan(Pruned):
    """Steps of both networks, of which the second goes through a graph that was made before the first."""

    def __init__(self):
        torch.manual_seed(0)
        generator = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 64), nn.Tanh())
        super().__init__(nn.ModuleDict({"generator": generator, "discriminator": nn.Linear(64, 1)}))
        self.automatic_optimization = False

    def training_step(self, batch, batch_index):
        self.look("training step")
        of_generator, of_discriminator = self.optimizers()
        images = batch[0].flatten(1)
        fake = self.network["generator"](images)
        loss = functional.softplus(self.network["discriminator"](fake.detach())).mean()
        of_discriminator.zero_grad()
        self.manual_backward(loss)
        of_discriminator.step()
        of_generator.zero_grad()
        self.manual_backward(functional.softplus(-self.network["discriminator"](fake)).mean())
        of_generator.step()

    def validation_step(self, batch, batch_index):
        self.look("validation step")

    def configure_optimizers(self):
        return [sgd(momentum=0.9)(part.parameters()) for part in self.network.values()]


def test_a_step_leaves_the_weights_of_other_optimisers_to_their_graphs():
    module, alone = Gan(), Gan()
    masks = masks_for(module)
    fit(module, MaskedTraining(masks))
    assert_held(module)
    apply_masks(alone, masks_for(alone))

    class Masks(torch.optim.SGD):
        """Masks by hand."""

        @torch.no_grad()
        def step(self, closure=None):
            loss = super().step(closure)
            for name, parameter in alone.named_parameters():
                if name in masks and any(parameter is each for each in self.param_groups[0]["params"]):
                    parameter.mul_(masks[name])
            return loss

    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}
    alone.configure_optimizers = lambda: [Masks(part.parameters(), **settings) for part in alone.network.values()]
    fit(alone)
    assert_state(module.state_dict(), alone.state_dict())


class Copies(Pruned):
    """Trains copies of its parameters, which it takes back after each step."""

    def on_fit_start(self):
        self.automatic_optimization = False
        self.copies = [nn.Parameter(parameter.detach().clone()) for parameter in self.parameters()]
        self.own = torch.optim.SGD(self.copies, lr=0.1)

    def training_step(self, batch, batch_index):
        self.optimizers().step()
        self.zero_grad()
        self.loss(batch).backward()
        for copy, parameter in zip(self.copies, self.parameters(), strict=True):
            copy.grad = parameter.grad
        self.own.step()
        for copy, parameter in zip(self.copies, self.parameters(), strict=True):
            parameter.data.copy_(copy)

    def configure_optimizers(self):
        return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)


@pytest.mark.parametrize(
    ("kind", "lam", "said"),
    [(Copies, 1e-4, ["LobsterPruning has shrunk no weight in the first epoch"]), (Copies, 0, []), (Pruned, 1e-4, [])],
)
def test_that_nothing_shrinks_is_said_once(kind, lam, said, recwarn):
    module = kind(NETWORKS["lenet300"]())
    module.look = lambda place: None
    fit(module, LobsterPruning(lam=lam))
    messages = [str(each.message).partition(":")[0] for each in recwarn]
    assert [message for message in messages if message.startswith("LobsterPruning has shrunk")] == said
