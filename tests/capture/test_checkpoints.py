"""Activation checkpoints of both kinds: gradients against the reference, in one and several backward passes."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from lightning_psp import PSPCallback, psp_penalty, record_potentials
from tests.support.cases import REDUCTIONS, Case, classification_batch, cross_entropy
from tests.support.cases.checkpoints import (
    KINDS,
    Checkpoint,
    around,
    checkpoint_cases,
    checkpointed,
    flat,
    layer,
    originals_are_back,
    seeded,
)
from tests.support.gradients import ScaledLoss, assert_equal_gradients, assert_matters
from tests.support.lightning_cases import fit
from tests.support.reference import reference_step
from tests.support.small import Classifier, loader, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
NAMES = list(checkpoint_cases(False))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", NAMES)
@KINDS
def test_gradient_and_values(name, reentrant, reduction):
    case = checkpoint_cases(reentrant)[name]
    network, (batch,) = case.build()
    step = reference_step(network, case.loss, batch, reduction, case.output_layer)
    lam = step.balanced_lam()
    assert_matters(step, lam)

    # "64-true" sets the default type in the first pass alone, which nested checkpoints of torch 2.6 take for a change
    module, trainer = fit(network, case.loss, [batch], PSPCallback(lam=lam, reduction=reduction), precision="32-true")

    (gradients,) = module.gradients
    assert_equal_gradients(gradients, step.gradients(lam), 1e-8)
    logged = trainer.callback_metrics
    assert logged["psp/penalty"].item() == pytest.approx(lam * step.penalty.item(), rel=1e-5)
    z2 = torch.stack([z.square().mean() for z in step.potentials]).mean()
    assert logged["psp/z2_train"].item() == pytest.approx(z2.item(), rel=1e-5)
    assert sum(key.startswith("psp_z2_train/") for key in logged) == len(step.potentials)
    assert originals_are_back()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("branches", "frozen")])
@KINDS
def test_gradient_of_recorded_potentials(name, reentrant):
    case = checkpoint_cases(reentrant)[name]
    network, (batch,) = case.build()
    step = reference_step(network, case.loss, batch, output_layer=case.output_layer)
    lam = step.balanced_lam()

    with record_potentials(network) as potentials:
        loss = case.loss(network, batch)
    (loss + lam * psp_penalty(potentials)).backward()

    gradients = {name: p.grad for name, p in network.named_parameters()}
    assert_equal_gradients(gradients, step.gradients(lam), 1e-10)
    assert originals_are_back()


@KINDS
def test_accumulated_and_scaled(reentrant):
    case = checkpoint_cases(reentrant)["nested"]
    network, batches = case.build(batches=2)
    steps = [reference_step(network, case.loss, batch) for batch in batches]
    lam = steps[0].balanced_lam()

    module, _ = fit(
        network,
        case.loss,
        batches,
        PSPCallback(lam=lam),
        plugins=[ScaledLoss(autocast=False)],
        accumulate_grad_batches=2,
    )

    (gradients,) = module.gradients
    parts = [step.gradients(lam) for step in steps]
    assert_equal_gradients(gradients, {name: sum(part[name] for part in parts) / 2 for name in parts[0]}, 1e-8)


@KINDS
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_class_named_in_activations(reentrant, reduction):
    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(x)

    case = Case(
        "class",
        lambda: checkpointed(lambda: nn.Sequential(nn.Linear(8, 8), Gate(), nn.Linear(8, 8), nn.ReLU()), reentrant),
        flat,
    )
    network, (batch,) = case.build()
    step = reference_step(network, case.loss, batch, reduction)
    lam = step.balanced_lam()

    module, _ = fit(network, case.loss, [batch], PSPCallback(lam=lam, reduction=reduction, activations=(Gate,)))

    assert_equal_gradients(module.gradients[0], step.gradients(lam), 1e-8)


class Centred(nn.Module):
    """Calls what the watch itself calls."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.sum(0) / 5 + x.view(-1).dot(x.view(-1))


def keep_all(context, function, *args, **kwargs) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE


def keep_products(context, function, *args, **kwargs) -> CheckpointPolicy:
    is_product = function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    return CheckpointPolicy.MUST_SAVE if is_product else CheckpointPolicy.PREFER_RECOMPUTE


@pytest.mark.parametrize("policy", [keep_all, keep_products])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_selective(policy, reduction):
    def part() -> nn.Module:
        if policy is keep_all:  # torch forbids to overwrite what was kept
            return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), Centred())
        return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.Tanh())

    contexts = partial(create_selective_checkpoint_contexts, policy)
    case = Case("selective", lambda: around(Checkpoint(part(), False, context_fn=contexts)), flat)
    network, (batch,) = case.build()
    step = reference_step(network, case.loss, batch, reduction)
    lam = step.balanced_lam()

    module, _ = fit(network, case.loss, [batch], PSPCallback(lam=lam, reduction=reduction))

    assert_equal_gradients(module.gradients[0], step.gradients(lam), 1e-8)


@pytest.mark.filterwarnings("ignore:Please specify CheckpointImpl.NO_REENTRANT:FutureWarning")  # by older versions
@KINDS
def test_checkpoint_imported_by_name(reentrant):
    kind = CheckpointImpl.REENTRANT if reentrant else CheckpointImpl.NO_REENTRANT
    gradients = []
    for wrap in (lambda part: part, lambda part: checkpoint_wrapper(part, kind)):
        case = Case("wrapped", lambda wrap=wrap: around(wrap(layer())), flat)
        network, (batch,) = case.build()
        module, _ = fit(network, case.loss, [batch], PSPCallback(lam=0.5))
        gradients.append(
            {name.replace("_checkpoint_wrapped_module.", ""): g for name, g in module.gradients[0].items()}
        )

    assert_equal_gradients(gradients[1], gradients[0], 1e-8)


@KINDS
def test_recorded_inside_a_penalised_step(reentrant):
    def loss(network, batch):
        with record_potentials(network) as potentials:
            total = seeded(network, batch)
        assert len(potentials) == len(step.potentials)
        return total

    case = checkpoint_cases(reentrant)["styles"]
    network, (batch,) = case.build()
    step = reference_step(network, case.loss, batch)
    lam = step.balanced_lam()

    module, _ = fit(network, loss, [batch], PSPCallback(lam=lam))

    assert_equal_gradients(module.gradients[0], step.gradients(lam), 1e-8)


# --- several backward passes -----------------------------------------------------------------------------------------


class TwoLosses(Classifier):
    """Two losses of one checkpointed trunk, each with a backward pass of its own."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.trunk = Checkpoint(nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 8)), reentrant)
        self.fourth = nn.Linear(8, 3)

    def potentials(self, features: Tensor) -> list[Tensor]:
        a = self.first(features)
        b = self.trunk.part[0](F.silu(a))
        c = self.trunk.part[2](torch.relu(b))
        return [a, b, c, self.third(torch.tanh(c)), self.fourth(torch.tanh(c))]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        features, labels = batch
        hidden = torch.tanh(self.trunk(F.silu(self.first(features))))
        self.backward_pass(F.cross_entropy(self.third(hidden), labels), retain_graph=True)
        self.backward_pass(F.cross_entropy(self.fourth(hidden), labels))

    def backward_pass(self, loss: Tensor, **settings: bool) -> None:
        self.manual_backward(loss, **settings)

    def layers(self) -> set[str]:
        logged = self.trainer.callback_metrics
        return {key.removeprefix("psp_z2_train/") for key in logged if key.startswith("psp_z2_train/")}

    def on_after_backward(self) -> None:
        pass


@KINDS
def test_two_losses_of_one_checkpoint(reentrant):
    torch.manual_seed(0)
    module = TwoLosses(reentrant).double()
    trainer = quiet_trainer(PSPCallback(lam=0.3), max_steps=1)
    trainer.fit(module, loader(1))

    features, labels = next(iter(loader(1)))
    *shared, one, two = module.potentials(features)
    first = torch.stack([z.square().mean() for z in [*shared, one]]).mean()
    loss = F.cross_entropy(one, labels) + F.cross_entropy(two, labels) + 0.3 * (first + two.square().mean())
    trained = [p for name, p in module.named_parameters() if not name.startswith("second")]
    for p, expected in zip(trained, torch.autograd.grad(loss, trained), strict=True):
        torch.testing.assert_close(p.grad, expected, rtol=1e-10, atol=1e-12)
    assert module.layers() == {"first", "trunk.part.0", "trunk.part.2", "third", "fourth"}


@KINDS
def test_a_recomputation_adds_no_layers(reentrant):
    """Where a backward pass runs under the eyes of the watch, and a part of the network behind it."""

    class Unheard(TwoLosses):
        def backward_pass(self, loss: Tensor, **settings: bool) -> None:
            torch.autograd.backward(loss, **settings)

    module = Unheard(reentrant).double()
    module.trunk.part[1] = nn.Sigmoid()  # outside the network, it would make an output layer
    with pytest.warns(UserWarning, match="which no callback hears of"):
        quiet_trainer(PSPCallback(), max_steps=1).fit(module, loader(1))
    assert module.layers() == {"first", "trunk.part.0", "trunk.part.2", "third", "fourth"}


@KINDS
def test_a_recomputation_is_no_call_of_the_network(reentrant):
    """Without a softmax in the loss, the module called last gives the output layer."""

    class Written(TwoLosses):
        def deep(self, x: Tensor) -> Tensor:
            return torch.tanh(2 * self.trunk(x))

        def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
            x = torch.tanh(self.first(batch[0]))
            output = self.third(torch.utils.checkpoint.checkpoint(self.deep, x, use_reentrant=reentrant))
            self.manual_backward(output.square().mean(), retain_graph=True)
            self.manual_backward(output.exp().mean())

    module = Written(reentrant).double()
    module.trunk = nn.Sequential(nn.Linear(8, 8), nn.Tanh()).double()
    quiet_trainer(PSPCallback(), max_steps=1).fit(module, loader(1))
    assert module.layers() == {"first", "trunk.0", "tanh", "third"}


@KINDS
def test_a_block_that_is_checkpointed_twice_is_one_layer(reentrant):
    block = Checkpoint(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), reentrant)
    network = nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), block, block, nn.Linear(8, 3)).double()
    batch = classification_batch(5, 6)
    batch = batch[0].double(), batch[1]
    first = network[0](batch[0])
    second = block.part[0](torch.sigmoid(first))
    third = block.part[0](torch.tanh(second))
    logits = network[4](torch.tanh(third))
    passes = torch.cat([second, third])
    penalty = sum(z.square().mean() for z in (first, passes, logits)) / 3
    expected = torch.autograd.grad(F.cross_entropy(logits, batch[1]) + 0.5 * penalty, list(network.parameters()))

    module, _ = fit(network, cross_entropy, [batch], PSPCallback(lam=0.5))

    for found, wanted in zip(module.gradients[0].values(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
