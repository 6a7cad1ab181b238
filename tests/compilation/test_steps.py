"""Losses and backward passes that are hard to follow, compiled in several ways, against the same without."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_psp import PSPCallback
from tests.support.compiled import (
    COMPILED,
    HIDDEN,
    LAM,
    Manual,
    Model,
    Network,
    batches,
    blocks_by_method,
    compare,
    network,
    one_hot,
    step,
    uses,
    whole_module,
)
from tests.support.gan import Gan
from tests.support.small import loader, quiet_trainer

pytestmark = COMPILED
TRACES_LOG = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 7)


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


class TwoHeads(Network):
    """Returns logits and a regression."""

    def __init__(self):
        super().__init__()
        self.side = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x):
        return super().forward(x), self.side(torch.relu(self.embed(x)))


def loss_of_two_heads(outputs, labels):
    return functional.cross_entropy(outputs[0], labels) + (outputs[1] - 1.0).square().mean()


LOSSES_ALONE = {
    **{name: LOSSES[name] for name in ("hinge", "by hand", "scaled")},
    "two heads": uses(loss_of_two_heads, TwoHeads),
}


@pytest.mark.parametrize("loss", ["hinge", "by hand", "two heads", pytest.param("scaled", marks=pytest.mark.slow)])
def test_a_loss_compiled_on_its_own(loss):
    def compile_both(module):
        network(module)
        module.loss = torch.compile(module.loss, backend="aot_eager")

    assert compare(LOSSES_ALONE[loss], compile_both).graphs == 2


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
