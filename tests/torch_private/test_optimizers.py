"""Optimisers: which of them tell of their steps, and whose gradients are unscaled."""

import torch

from lightning_psp.torch_private import optimizers


class Wrapper(torch.optim.Optimizer):
    def __init__(self, optimizer):
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups

    def step(self, closure=None):
        return self.optimizer.step(closure)


def test_a_version_that_does_not_tell(monkeypatch):
    optimizer = Wrapper(torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1))
    assert not optimizers.tells_of_steps(optimizer)
    monkeypatch.setattr(optimizers, "_MARK", "no such name")
    assert optimizers.tells_of_steps(optimizer)


def test_a_scaler_that_does_not_tell():
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
    assert not optimizers.has_unscaled(object(), optimizer)
