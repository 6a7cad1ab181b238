"""A `forward` that is called by its name gives the layers that a call of its module gives."""

import weakref
from functools import wraps

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_psp import PSPCallback, record_potentials
from tests.support.lightning_cases import fit

LAM = 0.3


class Residual(nn.Module):
    """Sums in a loop, which are told apart, and one behind an activation module of its own."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.last, self.act = nn.Linear(4, 4), nn.SiLU()

    def forward(self, x):
        for part in self.parts:
            x = torch.tanh(x + part(x))
        return self.act(x + self.last(x))


class Derived(Residual):
    def forward(self, x):
        return torch.sigmoid(super().forward(x) + super().forward(2 * x))


def decorated(forward):
    @wraps(forward)
    def call(self, *args):
        return forward(self, *args)

    return call


class Decorated(Residual):
    @decorated
    def forward(self, x):
        return torch.relu(x + self.last(x)) + torch.relu(x - self.last(x))


class Unrolled(nn.Module):
    """Evaluates a block several times: by a call of the module, or of its method."""

    def __init__(self, block, is_direct):
        super().__init__()
        self.block, self.head, self.is_direct = block, nn.Linear(4, 3), is_direct

    def forward(self, x):
        run = self.block.forward if self.is_direct else self.block
        for _ in range(3):
            x = run(x)
        return self.head(torch.relu(x + run(-x)))


def networks(block):
    for is_direct in (False, True):
        torch.manual_seed(0)
        yield Unrolled(block(), is_direct).double()


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 4, dtype=torch.float64, generator=generator), torch.tensor([0, 1, 2, 0, 1])


def loss_of(network, batch):
    return functional.cross_entropy(network(batch[0]), batch[1])


@pytest.mark.parametrize("block", [Residual, Derived, Decorated])
def test_layers_and_gradients_are_those_of_a_call_of_the_module(block):
    found = []
    for network in networks(block):
        module, trainer = fit(network, loss_of, [batch()], PSPCallback(lam=LAM))
        values = {key: value for key, value in trainer.callback_metrics.items() if key.startswith("psp_z2_train/")}
        found.append((values, module.gradients[0]))
    (called, gradients), (direct, direct_gradients) = found
    assert "psp_z2_train/network.relu" in called
    assert direct == called
    torch.testing.assert_close(direct_gradients, gradients)


def test_recorded_layers():
    (_, network) = networks(Residual)
    with record_potentials(network) as potentials:
        network.forward(batch()[0])
        network.forward(batch()[0])
    assert {name: len(z) for name, z in potentials.items()} == {
        "block.tanh": 40, "block.tanh:1": 40, "block.act": 40, "relu": 10, "head": 10,
    }  # fmt: skip


def test_a_call_within_a_run_and_a_run_within_a_call():
    class Within(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.own = inner, nn.Linear(4, 4)

        def forward(self, x):
            x = torch.tanh(x + self.own(x))
            return torch.relu(self.inner(x) + x)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Within(Within(Residual())), Within(nn.Identity())

        def forward(self, x):
            x = self.second(self.first.forward(self.second(x)))
            return self.second.forward(self.first(x))

    network = Outer().double()
    with record_potentials(network) as potentials:
        network(batch()[0])
    assert {name: len(z) for name, z in potentials.items()} == {
        "second.tanh": 15, "second.relu": 15, "first.tanh": 10, "first.inner.tanh": 10, "first.inner.inner.tanh": 10,
        "first.inner.inner.tanh:1": 10, "first.inner.inner.act": 10, "first.inner.relu": 10, "first.relu": 10,
    }  # fmt: skip


def test_nothing_is_held_of_a_run_when_its_step_has_ended():
    class Holds(Residual):
        def forward(self, x):
            local = nn.Identity()  # which a frame would hold
            found.append(weakref.ref(local))
            x = torch.relu(x + self.last(x))
            return torch.relu(x - self.last(x))

    class Looks(PSPCallback):
        def on_train_batch_end(self, *arguments):
            super().on_train_batch_end(*arguments)
            alive.append(sum(reference() is not None for reference in found))

    found, alive = [], []
    (_, network) = networks(Holds)
    fit(network, loss_of, [batch()], Looks(lam=LAM))
    assert len(found) == 4
    assert alive == [0]
