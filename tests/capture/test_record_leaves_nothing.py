"""Nothing that a recording saw outlives it, also where the garbage collector is off."""

import gc
import weakref
from contextlib import suppress

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_psp import psp_penalty, record_potentials
from lightning_psp.capture.mode import Capture


@pytest.fixture
def _no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


pytestmark = pytest.mark.usefixtures("_no_collector")


class Noted(nn.Module):
    """Keeps weak references to its potentials; may fail in its last layer."""

    def __init__(self, act=torch.tanh, fails=False):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.head, self.act, self.fails, self.seen = nn.Linear(6, 3), act, fails, []

    def note(self, z):
        self.seen.append(weakref.ref(z))
        return z

    def forward(self, x):
        for layer in self.layers:
            x = self.note(self.act(self.note(layer(x))))
        if self.fails:
            raise KeyError("labels")
        return self.note(self.head(x))

    def alive(self):
        return sum(tensor() is not None for tensor in self.seen)


ACTS = {
    "tanh": torch.tanh,
    "ReLU in place": functional.relu_,
    "written out": lambda x: x * torch.sigmoid(1.702 * x),
    "written out, in place": lambda x: x.mul_(x.sigmoid()),
}
acts = pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)


def captures():
    """How many watches of the package's there are."""
    return sum(type(thing) is Capture for thing in gc.get_objects())


def objects_of_the_capture():
    return sum(str(type(thing).__module__).startswith("lightning_psp.capture") for thing in gc.get_objects())


def loss_of(network):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 6, generator=generator), torch.tensor([0, 2, 1, 1, 0])
    return functional.cross_entropy(network(x), y)


@pytest.mark.parametrize("end", ["backward", "penalty", "dropped", "no gradient"])
@acts
def test_after_a_block(act, end):
    network = Noted(act)
    with torch.set_grad_enabled(end != "no gradient"), record_potentials(network) as potentials:
        loss = loss_of(network)
    tensors = [weakref.ref(z) for z in potentials.values()]
    if end == "backward":
        loss.backward()
    elif end == "penalty":
        (loss + psp_penalty(potentials)).backward()
    assert len(tensors) == 4
    del potentials, loss

    assert network.alive() == 0
    assert not any(tensor() is not None for tensor in tensors)
    assert captures() == 0


@acts
def test_after_an_exception(act):
    network = Noted(act, fails=True)

    with suppress(KeyError), record_potentials(network):
        loss_of(network)

    assert len(network.seen) == 6
    assert network.alive() == 0
    assert captures() == 0


def test_what_is_kept_is_what_was_recorded():
    network = Noted()
    with record_potentials(network) as potentials:
        loss_of(network)

    assert captures() == 0
    assert all(z.grad_fn is not None for z in potentials.values())


def test_nothing_else_of_the_capture_is_left():
    network = Noted()
    before = objects_of_the_capture()
    with record_potentials(network):
        loss_of(network)

    assert objects_of_the_capture() == before


class Attentive(nn.Module):
    """Three layers of attention, which keep weak references to their scores."""

    def __init__(self, weigh):
        super().__init__()
        self.layers, self.weigh, self.scores = nn.ModuleList(nn.Linear(6, 6) for _ in range(3)), weigh, []

    def forward(self, x):
        for layer in self.layers:
            h = torch.tanh(layer(x))
            scores = h @ h.mT
            self.scores.append(weakref.ref(scores))
            x = self.weigh(scores.softmax(-1), h)
        return x


WEIGHINGS = {
    "product": lambda weights, h: weights @ h,
    "einsum": lambda weights, h: torch.einsum("bqk,bkd->bqd", weights, h),
    "cast": lambda weights, h: (weights.bfloat16() @ h.bfloat16()).float(),
    "view": lambda weights, h: torch.bmm(weights.mT.contiguous(), h),
    "multiple": lambda weights, h: (weights / 2) @ h,
    "dropout": lambda weights, h: functional.dropout(weights, 0.5) @ h,
}


@pytest.mark.parametrize("weigh", WEIGHINGS.values(), ids=WEIGHINGS)
def test_scores_of_attention_are_let_go_of_while_the_network_runs(weigh):
    network = Attentive(weigh)
    with record_potentials(network):
        y = network(torch.randn(2, 4, 6))
        assert [scores() is not None for scores in network.scores[:-1]] == [False, False]
        y.square().mean()
