"""Losses, backward passes and networks that are hard to follow, compiled in several ways, against the same without."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_psp import PSPCallback
from tests.compiled import (
    BATCH,
    CLASSES,
    FEATURES,
    HIDDEN,
    LAM,
    Block,
    Model,
    Network,
    batches,
    blocks_by_method,
    compare,
    network,
    step,
    whole_module,
)
from tests.small import loader, quiet_trainer
from tests.test_manual_optimization import Gan

pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    # where Lightning's own code breaks a graph
    pytest.mark.filterwarnings("ignore:Dynamo"),
    pytest.mark.filterwarnings("ignore:Graph break"),
]
TRACES_LOG = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 7)


def one_hot(labels: Tensor) -> Tensor:
    return functional.one_hot(labels, CLASSES).double()


class Loss(Model):
    """A loss given as a function of the network's output."""

    def __init__(self, loss, network=None):
        super().__init__(network)
        self.loss = loss

    def training_step(self, batch, batch_index):
        return self.loss(self(batch[0]), batch[1])


def uses(loss, network=Network):
    return lambda: Loss(loss, network())


class Logs(Model):
    """Breaks the graph between network and loss, and calls the network once more."""

    def training_step(self, batch, batch_index):
        logits = self(batch[0])
        self.log("mean", logits.mean())
        loss = functional.cross_entropy(logits, batch[1])
        self.log("loss", loss)
        with torch.no_grad():
            self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).double().mean())
        return loss


class Siamese(Model):
    def training_step(self, batch, batch_index):
        first, second = self(batch[0]), self(batch[0] + 1.0)
        return functional.cosine_embedding_loss(first, second, torch.ones(len(first)).to(first))


class Teacher(Model):
    def __init__(self):
        super().__init__()
        self.teacher = Network()

    def training_step(self, batch, batch_index):
        student = self(batch[0])
        with torch.no_grad():
            target = self.teacher(batch[0])
        return (student - target).square().mean()


class Manual(Model):
    def __init__(self, network=None):
        super().__init__(network)
        self.automatic_optimization = False

    def training_step(self, batch, batch_index):
        self.optimizers().zero_grad()
        self.backward_passes(self(batch[0]), batch[1])
        self.optimizers().step()

    def backward_passes(self, logits, labels):
        self.manual_backward(functional.cross_entropy(logits, labels))


class Twice(Manual):
    """Two losses of one graph: each potential is penalised in the first."""

    def backward_passes(self, logits, labels):
        self.manual_backward(functional.cross_entropy(logits, labels), retain_graph=True)
        self.manual_backward(logits.square().mean())


class Again(Manual):
    def training_step(self, batch, batch_index):
        loss = functional.cross_entropy(self(batch[0]), batch[1])
        for _ in range(2):
            self.optimizers().zero_grad()
            self.manual_backward(loss, retain_graph=True)


class Unheard(Manual):
    def backward_passes(self, logits, labels):
        functional.cross_entropy(logits, labels).backward()


LOSSES = {
    "by hand": uses(lambda logits, labels: (logits - one_hot(labels)).square().mean()),
    "mse_loss": uses(lambda logits, labels: functional.mse_loss(logits, one_hot(labels))),
    "with logits": uses(lambda logits, labels: functional.binary_cross_entropy_with_logits(logits, one_hot(labels))),
    "softplus": uses(lambda logits, labels: functional.softplus(logits).mean()),
    "hinge": uses(lambda logits, labels: functional.relu(1.0 - logits).mean()),
    "nll_loss": uses(lambda logits, labels: functional.nll_loss(logits.log_softmax(1), labels)),
    "scaled": uses(lambda logits, labels: functional.cross_entropy(logits * 2.0, labels)),
    "logs": Logs,
    "siamese": Siamese,
    "teacher": Teacher,
    "manual": Manual,
    "twice": Twice,
    "again": Again,
}
QUICK = {("by hand", network), ("nll_loss", step), ("hinge", step), ("siamese", whole_module), ("teacher", network)}
QUICK |= {("logs", step), ("manual", step), ("twice", network), ("again", network)}


@pytest.mark.parametrize(
    ("name", "way"),
    [
        pytest.param(name, way, marks=() if (name, way) in QUICK else pytest.mark.slow)
        for name in LOSSES
        for way in (network, step, whole_module, blocks_by_method)
    ],
)
def test_steps(name, way):
    if name == "logs" and way in (step, whole_module) and not TRACES_LOG:
        pytest.skip("this version of torch cannot trace `LightningModule.log`")
    compare(LOSSES[name], way)


@pytest.mark.parametrize("loss", ["hinge", "by hand", pytest.param("scaled", marks=pytest.mark.slow)])
def test_a_loss_compiled_on_its_own(loss):
    def compile_both(module):
        network(module)
        module.loss = torch.compile(module.loss, backend="aot_eager")

    assert compare(LOSSES[loss], compile_both).graphs == 2


@pytest.mark.parametrize("way", [step, pytest.param(whole_module, marks=pytest.mark.slow)])
def test_a_backward_pass_in_a_compiled_step_that_no_callback_hears_of(way):
    module = Unheard().double()
    wrapped = way(module)
    with pytest.warns(UserWarning, match="self.manual_backward"):
        quiet_trainer(PSPCallback(lam=LAM)).fit(module if wrapped is None else wrapped, batches())


@pytest.mark.parametrize("is_whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gan(is_whole):
    made = []
    for is_compiled in (False, True):
        torch.manual_seed(0)
        module = Gan().double()
        if is_compiled and is_whole:
            step(module)
        elif is_compiled:
            module.generator.compile(backend="aot_eager")
            module.discriminator = torch.compile(module.discriminator, backend="aot_eager")
        quiet_trainer(PSPCallback(lam=LAM)).fit(module, loader(2))
        made.append(module.found)
    assert len(made[0]) == 4
    for expected, found in zip(*made, strict=True):
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-8, atol=1e-12)


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


NETWORKS = {
    **{f.__name__: changed(f) for f in (graph_break, value_read, dead, without_gradient, detached, read_twice, views)},
    "broken blocks": broken_blocks,
    "shared block": shared_block,
    "log-probabilities": uses(functional.nll_loss, lambda: Probabilities(nn.LogSoftmax(1))),
    "probabilities": uses(lambda p, y: functional.nll_loss(p.log(), y), lambda: Probabilities(nn.Softmax(1))),
    "sigmoids": uses(lambda p, y: functional.binary_cross_entropy(p, one_hot(y)), lambda: Probabilities(nn.Sigmoid())),
    "dictionary": uses(lambda p, y: functional.cross_entropy(p["x"], y), lambda: Probabilities(lambda z: {"x": z})),
    "first output": lambda: OneOutput([0]),
    "both outputs": lambda: OneOutput([0, 1]),
    "outputs in turn": OutputsInTurn,
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
}


SLOW = {"value_read", "without_gradient", "read_twice", "sigmoids", "probabilities", "dictionary", "first output"}


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


@pytest.mark.parametrize(
    "settings",
    [
        {"layer_lam": {"network.blocks*": 0.0, "network.head": 0.5}},
        {"exclude": ["network.blocks*"]},
        {"output": False},
    ],
)
def test_choice_of_layers(settings):
    compare(Model, network, lambda: PSPCallback(lam=LAM, **settings))


class Convolutions(Network):
    """Units in dimension 1 of a batch norm, and in the last of a linear map of three dimensions."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Conv1d(2, HIDDEN, 3, padding=1), nn.BatchNorm1d(HIDDEN)
        self.tokens = nn.Linear(FEATURES, 5)

    def forward(self, x):
        x = functional.relu(self.norm(self.embed(x)), inplace=True)
        x = functional.silu(self.tokens(x)).mean(-1)
        return self.head(torch.tanh(self.blocks(x * 2.0)))


@pytest.mark.parametrize(
    "reduction", [*(pytest.param(r, marks=pytest.mark.slow) for r in ("mean", "squared_mean")), "sum"]
)
@pytest.mark.parametrize("way", [step, pytest.param(network, marks=pytest.mark.slow)])
def test_reductions(reduction, way):
    data = batches(2, last=BATCH - 1, shape=(2, FEATURES))
    compare(lambda: Model(Convolutions()), way, lambda: PSPCallback(lam=LAM, reduction=reduction), data=data)


class Evaluated(Model):
    """Nothing uses what the network returns in validation."""

    def __init__(self):
        super().__init__()
        self.network.blocks = nn.Sequential(
            nn.Unflatten(1, (1, HIDDEN)), nn.TransformerEncoderLayer(HIDDEN, 2, 16, dropout=0.0, batch_first=True)
        )
        self.network.blocks.append(nn.Flatten())


@pytest.mark.parametrize("way", [network, pytest.param(whole_module, marks=pytest.mark.slow)])
def test_validation(way):
    trained = compare(Evaluated, way, validation=batches(2, last=3), max_epochs=2)
    assert "psp_z2_val/network.blocks.1.linear1" in trained.values


class Recurrent(Network):
    def __init__(self, make):
        super().__init__()
        self.recurrent = make(HIDDEN, HIDDEN)

    def forward(self, x):
        x = functional.silu(self.embed(x))
        x = self.recurrent(x[:, None])[0][:, 0] if isinstance(self.recurrent, nn.LSTM) else self.recurrent(x)
        return self.head(x * 2.0)


def test_a_recurrent_layer_inside_breaks_the_graph():
    def make():
        return Model(Recurrent(lambda *sizes: nn.LSTM(*sizes, batch_first=True)))

    assert "psp_z2_train/network.recurrent" in compare(make, network).values


def test_a_recurrent_cell_inside_is_refused_with_the_remedy():
    def make():
        return Model(Recurrent(nn.GRUCell))

    module = make().double()
    network(module)
    with pytest.raises(Exception, match=r"'network.recurrent'.*torch.compiler.disable"):
        quiet_trainer(PSPCallback(lam=LAM)).fit(module, batches())

    def follow(module):
        cell = module.network.recurrent
        cell.forward = torch.compiler.disable(cell.forward)
        network(module)

    compare(make, follow)


class Checkpointed(Network):
    def forward(self, x):
        x = functional.silu(self.embed(x))
        x = torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=False)
        return self.head(torch.tanh(x))

    def inner(self, x):
        return self.blocks(x * 2.0)


def test_a_checkpoint_inside_is_refused_with_the_remedy():
    def make():
        return Model(Checkpointed())

    module = make().double()
    network(module)
    with pytest.raises(Exception, match=r"'network.relu'.*activation checkpoint.*torch.compiler.disable"):
        quiet_trainer(PSPCallback(lam=LAM)).fit(module, batches())

    def follow(module):
        module.network.inner = torch.compiler.disable(module.network.inner)
        network(module)

    compare(make, follow)


class CheckpointsItsBlocks(Network):
    def forward(self, x):
        x = functional.silu(self.embed(x))
        return self.head(torch.tanh(torch.utils.checkpoint.checkpoint(self.blocks, x, use_reentrant=False)))


def test_a_checkpoint_around_compiled_code_is_refused_with_the_remedy():
    module = Model(CheckpointsItsBlocks()).double()
    module.network.blocks.compile(backend="aot_eager")

    with pytest.raises(NotImplementedError, match=r"'network.blocks.*Compile this part .* or checkpoint it, not both"):
        quiet_trainer(PSPCallback(lam=LAM)).fit(module, batches())
