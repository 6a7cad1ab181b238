"""Networks that are hard to follow, compiled in several ways, against the same without."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_psp import PSPCallback
from tests.support.compiled import (
    CLASSES,
    COMPILED,
    FEATURES,
    HIDDEN,
    LAM,
    Block,
    Loss,
    Manual,
    Model,
    Network,
    blocks_by_method,
    compare,
    network,
    one_hot,
    step,
    uses,
    whole_module,
)

pytestmark = COMPILED


class Changed(Network):
    """A network with a further linear map, and something between its embedding and its blocks."""

    def __init__(self, between):
        super().__init__()
        self.further = nn.Linear(HIDDEN, HIDDEN)
        self.between = between

    def forward(self, x):
        x = self.between(self, self.embed(x))
        return self.head(torch.tanh(self.blocks(x * 2.0)))


def graph_break(net, x):
    x = functional.silu(x)
    torch._dynamo.graph_break()
    return x


def gates_around_a_break(net, x):
    x = torch.relu(x)
    torch._dynamo.graph_break()
    return torch.tanh(x * torch.sigmoid(net.further(x)))


def gates_before_a_break(net, x):
    first, second = x.chunk(2, dim=-1)
    torch._dynamo.graph_break()
    return net.further(torch.cat([torch.sigmoid(first), torch.tanh(second)], dim=-1))


def weights_before_a_break(net, x):
    weight = net.further.weight * 0.5
    torch._dynamo.graph_break()
    weight = weight + functional.softplus(weight)
    torch._dynamo.graph_break()
    return functional.silu(x @ weight)


def value_read(net, x):
    x = functional.silu(x)
    return x if x.sum().item() < 1e9 else x + 1.0


def dead(net, x):
    torch.relu(net.further(x))
    return functional.silu(x)


def without_gradient(net, x):
    with torch.no_grad():
        shift = torch.relu(net.further(x))
    return functional.silu(x) + shift


def detached(net, x):
    return functional.silu(x) + torch.relu(net.further(x.detach())) + torch.tanh(net.further(x)).detach()


def read_twice(net, x):
    return torch.relu(x) * torch.sigmoid(x)


def views(net, x):
    x = x * 1.0
    functional.elu_(x.view(-1, 4)[1::2])
    return x * 2.0


class BrokenBlock(Block):
    def forward(self, x):
        y = self.act(x)
        torch._dynamo.graph_break()
        return x + self.inner(y)


def changed(between):
    return lambda: Model(Changed(between))


def broken_blocks():
    module = Model()
    module.network.blocks = nn.Sequential(BrokenBlock(), BrokenBlock())
    return module


def shared_block():
    module = Model()
    module.network.blocks[1] = module.network.blocks[0]
    return module


class Probabilities(Network):
    def __init__(self, last):
        super().__init__()
        self.last = last

    def forward(self, x):
        return self.last(super().forward(x))


class Auxiliary(Network):
    """Returns more than its logits."""

    def __init__(self):
        super().__init__()
        self.side = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x):
        x = functional.silu(self.embed(x))
        return self.head(torch.tanh(self.blocks(x * 2.0))), {"side": self.side(torch.relu(x))}, torch.sigmoid(x)


class OneOutput(Loss):
    def __init__(self, numbers):
        super().__init__(None, Auxiliary())
        self.numbers = numbers

    def training_step(self, batch, batch_index):
        logits, others, _ = self(batch[0])
        outputs = [logits, others["side"]]
        return sum(functional.cross_entropy(outputs[number], batch[1]) for number in self.numbers)


class OutputsInTurn(Manual):
    def __init__(self):
        super().__init__(Auxiliary())

    def backward_passes(self, outputs, labels):
        self.manual_backward(functional.cross_entropy(outputs[0], labels), retain_graph=True)
        self.manual_backward(functional.cross_entropy(outputs[1]["side"], labels))


class OwnLoss(Auxiliary):
    """Returns its loss, of logits and of a regression, and what that is made of."""

    def __init__(self, returns_logits=True):
        super().__init__()
        self.returns_logits = returns_logits

    def forward(self, x):
        logits, others, _ = super().forward(x)
        loss = logits.logsumexp(1).mean() + functional.cross_entropy(logits, logits.argmax(1))
        loss = loss + (others["side"] - 1.0).square().mean()
        return (loss, logits, others["side"]) if self.returns_logits else (loss, others["side"])


class LossOfSum(Network):
    """Returns the logits, which no module alone gives, beside its loss."""

    def __init__(self):
        super().__init__()
        self.beside = nn.Linear(FEATURES, CLASSES)

    def forward(self, x):
        logits = super().forward(x) + self.beside(x)
        return functional.cross_entropy(logits, logits.argmax(1)), logits


class LossBehindBreak(Probabilities):
    """Computes its loss in another graph than what that is of, which is a function of the output layer."""

    def __init__(self, last, loss):
        super().__init__(last)
        self.loss = loss

    def forward(self, x):
        prediction = super().forward(x)
        torch._dynamo.graph_break()
        return self.loss(prediction, one_hot(torch.arange(len(x)) % CLASSES)), prediction


LOSSES_BEHIND_BREAKS = {
    "sigmoids": (torch.sigmoid, functional.l1_loss),
    "a part of sigmoids": (torch.sigmoid, lambda p, y: functional.mse_loss(p[:, 1:], y[:, 1:])),
    "probabilities": (nn.Softmax(1), functional.smooth_l1_loss),
    "a multiple": (lambda z: 2.0 * z, functional.mse_loss),
    "a bounded function": (lambda z: 3.0 * torch.tanh(z / 3.0), functional.cross_entropy),
}


class Frozen(Model):
    """The front has constants for potentials; with `inputs`, these carry gradient all the same."""

    def __init__(self, inputs=False):
        super().__init__()
        self.network.embed.requires_grad_(False)
        self.network.blocks[0].requires_grad_(False)
        self.inputs = inputs

    def training_step(self, batch, batch_index):
        features = batch[0].clone().requires_grad_() if self.inputs else batch[0]
        return functional.cross_entropy(self(features), batch[1])


class TrainedBefore(Model):
    """What is trained lies before the compiled network alone."""

    def __init__(self):
        super().__init__()
        self.network.requires_grad_(False)
        self.before = nn.Linear(FEATURES, FEATURES)

    def training_step(self, batch, batch_index):
        return functional.cross_entropy(self(self.before(batch[0])), batch[1])


BETWEEN = (graph_break, gates_around_a_break, gates_before_a_break, weights_before_a_break)
BETWEEN += (value_read, dead, without_gradient, detached, read_twice, views)
NETWORKS = {
    **{f.__name__: changed(f) for f in BETWEEN},
    "broken blocks": broken_blocks,
    "shared block": shared_block,
    "log-probabilities": uses(functional.nll_loss, lambda: Probabilities(nn.LogSoftmax(1))),
    "probabilities": uses(lambda p, y: functional.nll_loss(p.log(), y), lambda: Probabilities(nn.Softmax(1))),
    "sigmoids": uses(lambda p, y: functional.binary_cross_entropy(p, one_hot(y)), lambda: Probabilities(nn.Sigmoid())),
    "bounded": uses(functional.cross_entropy, lambda: Probabilities(lambda z: 3.0 * torch.tanh(z / 3.0))),
    "dictionary": uses(lambda p, y: functional.cross_entropy(p["x"], y), lambda: Probabilities(lambda z: {"x": z})),
    "first output": lambda: OneOutput([0]),
    "both outputs": lambda: OneOutput([0, 1]),
    "outputs in turn": OutputsInTurn,
    "own loss": uses(lambda outputs, labels: outputs[0], OwnLoss),
    "own loss without logits": uses(lambda outputs, labels: outputs[0], lambda: OwnLoss(returns_logits=False)),
    "own loss of a sum": uses(lambda outputs, labels: outputs[0], LossOfSum),
    **{
        f"own loss behind a break, of {name}": uses(
            lambda outputs, labels: outputs[0], lambda functions=functions: LossBehindBreak(*functions)
        )
        for name, functions in LOSSES_BEHIND_BREAKS.items()
    },
    "frozen": Frozen,
    "frozen behind inputs with gradient": lambda: Frozen(inputs=True),
    "trained before": TrainedBefore,
}
WAY_OF = {name: (network, step)[number % 2] for number, name in enumerate(NETWORKS)}
WAY_OF |= {
    "outputs in turn": network,
    "broken blocks": blocks_by_method,
    "trained before": blocks_by_method,
    "log-probabilities": step,
    "own loss of a sum": step,
    "bounded": network,
}


SLOW = {"value_read", "without_gradient", "read_twice", "sigmoids", "probabilities", "dictionary", "first output"}
SLOW |= {f"own loss behind a break, of {name}" for name in ("a part of sigmoids", "probabilities", "a multiple")}


@pytest.mark.parametrize(
    ("name", "way"),
    [
        pytest.param(name, way, marks=() if way is WAY_OF[name] and name not in SLOW else pytest.mark.slow)
        for name in NETWORKS
        for way in (network, step, whole_module, blocks_by_method)
    ],
)
def test_networks(name, way):
    compare(NETWORKS[name], way)


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(x)


def sines():
    module = changed(lambda net, x: net.sine(x))()
    module.network.sine = Sine()
    return module


@pytest.mark.parametrize("activation", [Sine, torch.sin])
@pytest.mark.parametrize("way", [network, pytest.param(step, marks=pytest.mark.slow)])
def test_activations(activation, way):
    trained = compare(sines, way, lambda: PSPCallback(lam=LAM, activations=[activation]))
    assert "psp_z2_train/network.embed" in trained.values


def normalised():
    module = changed(lambda net, x: net.norm(x))()
    module.network.norm = nn.BatchNorm1d(HIDDEN)
    return module


def test_numbers_that_may_change_are_no_reason_to_break_the_graph():
    compare(normalised, lambda module: network(module, dynamic=True, fullgraph=True))
