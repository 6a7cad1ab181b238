"""Each step of an optimiser is noticed once, when the weights have moved."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_psp.pruning.optimizer_steps import OptimizerSteps, gradient_scale
from tests.support.pruning.training import hooks


class Twice(torch.optim.SGD):
    """Takes its step in two."""

    def step(self, closure=None):
        super().step()
        return super().step(closure)


class Wrapper(torch.optim.Optimizer):
    """Has another optimiser take its step, of the same parameters."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})
        self.inner = torch.optim.SGD(self.param_groups[0]["params"], lr=lr)

    def step(self, closure=None):
        return self.inner.step(closure)


class Broken(torch.optim.SGD):
    def step(self, closure=None):
        raise RuntimeError("broken")


@pytest.fixture
def layer():
    layer = nn.Linear(2, 1)
    layer.weight.grad, layer.bias.grad = torch.ones(1, 2), torch.ones(1)
    return layer


@pytest.fixture
def noticed(layer):
    """The optimisers whose steps were noticed, with the weight then."""

    def note(optimizer, is_part):
        (noticed.parts if is_part else noticed.found).append((optimizer, layer.weight[0, 0].item()))

    noticed = SimpleNamespace(found=[], parts=[], steps=OptimizerSteps([layer.weight], note))
    yield noticed
    noticed.steps.close()
    assert hooks() == (0, 0)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Rprop, Twice, Wrapper])
def test_a_step_is_noticed_once_and_afterwards(kind, layer, noticed):
    before = layer.weight[0, 0].item()
    optimizer = kind(layer.parameters(), lr=0.1)
    assert noticed.found == []
    optimizer.step()
    after = layer.weight[0, 0].item()
    assert after != before
    assert noticed.found == [(optimizer, after)]
    optimizer.step()
    assert len(noticed.found) == 2
    assert len(noticed.parts) == {Twice: 4, Wrapper: 2}.get(kind, 0)


def test_a_step_of_a_closure(layer, noticed):
    calls = []

    def closure():
        calls.append(len(noticed.found))
        return (layer.weight.square().sum() + layer.bias.square().sum()).detach()

    optimizer = torch.optim.LBFGS(layer.parameters(), lr=0.1, max_iter=3)
    optimizer.step(closure)
    assert len(calls) == 3
    assert calls == [0, 0, 0]
    assert len(noticed.found) == 1


def test_other_parameters(layer, noticed):
    torch.optim.SGD([layer.bias], lr=0.1).step()
    assert noticed.found == []
    noticed.steps.watch([layer.bias])
    torch.optim.SGD([layer.bias], lr=0.1).step()
    assert len(noticed.found) == 1
    torch.optim.SGD([layer.weight], lr=0.1).step()
    assert len(noticed.found) == 1


def test_a_step_within_another_of_other_parameters(layer, noticed):
    inner = torch.optim.SGD([layer.weight], lr=0.1)
    torch.optim.SGD([layer.bias], lr=0.1).step(lambda: inner.step())
    assert [optimizer for optimizer, _ in noticed.found] == [inner]


def test_a_step_that_failed_hides_no_later_one(layer, noticed):
    broken = Broken([layer.weight], lr=0.1)
    with pytest.raises(RuntimeError, match="broken"):
        broken.step()
    assert noticed.found == []
    noticed.steps.forget_unfinished()
    torch.optim.SGD([layer.weight], lr=0.1).step()
    assert len(noticed.found) == 1


@pytest.mark.parametrize(("fused", "by_hand"), [(False, True), (True, False), (True, True)])
def test_loss_scaling(fused, by_hand, layer, noticed):
    """A step that is skipped is none; a fused optimiser gets scaled gradients, unless the user unscales them."""
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    trainer = SimpleNamespace(precision_plugin=MixedPrecision("16-mixed", "cpu", scaler=scaler))
    optimizer = torch.optim.SGD([layer.weight], lr=0.1, fused=fused)
    for value, steps in ((1.0, 1), (float("inf"), 1), (1.0, 2)):
        optimizer.zero_grad()
        scaler.scale((layer.weight * torch.tensor([value, 1.0])).sum()).backward()
        if by_hand:
            scaler.unscale_(optimizer)
        expected = torch.tensor([[value, 1.0]])
        torch.testing.assert_close(layer.weight.grad / gradient_scale(trainer, optimizer), expected)
        scaler.step(optimizer)
        scaler.update()
        assert len(noticed.found) == steps


def test_without_loss_scaling(layer):
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, fused=True)
    assert gradient_scale(SimpleNamespace(precision_plugin=object()), optimizer) == 1.0


@pytest.mark.filterwarnings(
    "ignore:Graph break due to unsupported builtin"
)  # of an older torch, by the list of the test
def test_a_compiled_step(layer, noticed, fresh_compiler):
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    step = torch.compile(optimizer.step, backend="eager")
    step()
    step()
    assert len(noticed.found) == 2
