"""Activation checkpoints of both kinds: the gradient of the whole penalty, and no potential held for it."""

import gc
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from lightning_psp import PSPCallback, psp_penalty, record_potentials
from tests.cases import REDUCTIONS, Case, classification_batch, cross_entropy
from tests.cases_structures import loss_inside
from tests.lightning_cases import fit
from tests.reference import reference_step
from tests.small import BATCH, FEATURES, Classifier, loader, quiet_trainer
from tests.test_gradient import ScaledLoss, assert_equal_gradients, assert_matters

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
KINDS = pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
GLOBALS = [name for name in vars(torch.utils.checkpoint) if name.startswith("_checkpoint_without_reentrant")] + [
    "CheckpointFunction"
]
ORIGINALS = {name: getattr(torch.utils.checkpoint, name) for name in GLOBALS}


def originals_are_back() -> bool:
    return all(getattr(torch.utils.checkpoint, name) is original for name, original in ORIGINALS.items())


class Checkpoint(nn.Module):
    """Runs a module as a checkpoint."""

    def __init__(self, part: nn.Module, reentrant: bool, **settings: Any) -> None:
        super().__init__()
        self.part, self.reentrant, self.settings = part, reentrant, settings

    def forward(self, *inputs: Tensor) -> Any:
        return torch.utils.checkpoint.checkpoint(self.part, *inputs, use_reentrant=self.reentrant, **self.settings)


class Styles(nn.Module):
    """Activations in all the ways in which they are written."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(7))
        self.relu, self.gelu = nn.ReLU(inplace=True), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d, e, f, g = self.layers
        x = self.gelu(b(self.relu(a(x))))
        x = F.leaky_relu(c(x), 0.1, inplace=True)
        x = d(x).sigmoid_()
        z = e(x)
        F.elu(z.view(-1, 8), inplace=True)
        x = F.silu(f(z))
        y = g(x)
        return F.relu(input=y) * torch.tanh(y)


class Branches(nn.Module):
    """Gives a tuple; one branch is cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.cut = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, int]:
        left, right = F.relu(self.left(x), inplace=True), torch.tanh(self.right(y))
        return left + F.softplus(self.cut(x)).detach(), right, 3


class Joined(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.branches = Checkpoint(Branches(), reentrant)

    def forward(self, x: Tensor) -> Tensor:
        left, right, factor = self.branches(x, F.silu(x))
        return factor * left * right


class Twice(nn.Module):
    """One block, called twice; its second nonlinearity lies outside the checkpoint, the first one at its entrance."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.block = Checkpoint(nn.Sequential(nn.Tanh(), nn.Linear(8, 8), nn.ELU(), nn.Linear(8, 8)), reentrant)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.block(F.relu(self.block(x))), inplace=True)


class Segments(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.parts = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True)) for _ in range(5)))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint_sequential(self.parts, 3, x, use_reentrant=self.reentrant)


class LossOfHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.head(F.relu(self.hidden(x), inplace=True)), labels)


class LossInCheckpoint(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.loss = nn.Linear(6, 8), Checkpoint(LossOfHead(), reentrant)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.loss(torch.tanh(self.first(x)), labels)


def layer() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), nn.ReLU(inplace=True))


def around(part: nn.Module) -> nn.Module:
    """A network that ends and begins outside the part."""
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), part, nn.Linear(8, 3))


def checkpointed(part: Any, reentrant: bool) -> nn.Module:
    return around(Checkpoint(part(), reentrant))


def nested(reentrant: bool) -> nn.Module:
    inner = Checkpoint(nn.Sequential(layer(), Checkpoint(layer(), reentrant), nn.Dropout(0.3), layer()), reentrant)
    return around(Checkpoint(nn.Sequential(layer(), inner, layer()), reentrant))


def frozen(reentrant: bool) -> nn.Module:
    network = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), Checkpoint(layer(), reentrant), nn.Linear(8, 3)
    )
    network[0].requires_grad_(False)
    return network


def encoder(reentrant: bool) -> nn.Module:
    layers = [nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True) for _ in range(2)]
    return nn.Sequential(nn.Linear(6, 8), *(Checkpoint(part, reentrant) for part in layers), nn.Linear(8, 3))


def resnet18(reentrant: bool) -> nn.Module:
    from torchvision import models

    network = models.resnet18(num_classes=3)
    for name in ("layer1", "layer2", "layer3", "layer4"):
        setattr(network, name, Checkpoint(getattr(network, name), reentrant))
    return network


def seeded(network: nn.Module, batch: Any) -> Tensor:
    torch.manual_seed(3)  # for dropout
    return cross_entropy(network, batch)


def seeded_tokens(network: nn.Module, batch: Any) -> Tensor:
    torch.manual_seed(3)
    return F.cross_entropy(network(batch[0]).transpose(1, 2), batch[1])


flat = partial(classification_batch, 5, 6)


def cases(reentrant: bool) -> dict[str, Case]:
    tokens = Case(
        "encoder",
        partial(encoder, reentrant),
        lambda: (torch.randn(3, 4, 6), torch.randint(3, (3, 4))),
        seeded_tokens,
    )
    images = Case(
        "resnet18", partial(resnet18, reentrant), partial(classification_batch, 2, 3, 32, 32), needs_torchvision=True
    )
    inside = Case("loss", partial(LossInCheckpoint, reentrant), flat, loss_inside, output_layer="softmax")
    networks = {
        "styles": partial(checkpointed, Styles, reentrant),
        "dropout": lambda: around(Checkpoint(nn.Sequential(layer(), nn.Dropout(0.5), layer()), reentrant)),
        "branches": lambda: around(Joined(reentrant)),
        "twice": lambda: around(Twice(reentrant)),
        "segments": lambda: around(Segments(reentrant)),
        "nested": partial(nested, reentrant),
        "frozen": partial(frozen, reentrant),
    }
    plain = [
        Case(name, network, flat, seeded, partly_live=name in ("branches", "frozen"))
        for name, network in networks.items()
    ]
    return {case.name: case for case in [*plain, tokens, images, inside]}


NAMES = list(cases(False))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", NAMES)
@KINDS
def test_gradient_and_values(name, reentrant, reduction):
    case = cases(reentrant)[name]
    if case.needs_torchvision:
        pytest.importorskip("torchvision")
    network, (batch,) = case.build()
    step = reference_step(network, case.loss, batch, reduction, case.output_layer)
    lam = step.balanced_lam()
    assert_matters(step, lam)

    module, trainer = fit(network, case.loss, [batch], PSPCallback(lam=lam, reduction=reduction))

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
    case = cases(reentrant)[name]
    if case.needs_torchvision:
        pytest.importorskip("torchvision")
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
    case = cases(reentrant)["nested"]
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


def keep_all(context, function, *args, **kwargs) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE


def keep_products(context, function, *args, **kwargs) -> CheckpointPolicy:
    is_product = function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    return CheckpointPolicy.MUST_SAVE if is_product else CheckpointPolicy.PREFER_RECOMPUTE


@pytest.mark.parametrize("policy", [keep_all, keep_products])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_selective(policy, reduction):
    def part() -> nn.Module:
        in_place = policy is keep_products  # torch forbids to overwrite what was kept
        return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(in_place), nn.Linear(8, 8), nn.Tanh())

    contexts = partial(create_selective_checkpoint_contexts, policy)
    case = Case("selective", lambda: around(Checkpoint(part(), False, context_fn=contexts)), flat)
    network, (batch,) = case.build()
    step = reference_step(network, case.loss, batch, reduction)
    lam = step.balanced_lam()

    module, _ = fit(network, case.loss, [batch], PSPCallback(lam=lam, reduction=reduction, histograms=False))

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
        one, two = F.cross_entropy(self.third(hidden), labels), F.cross_entropy(self.fourth(hidden), labels)
        self.manual_backward(one, retain_graph=True)
        self.manual_backward(two)

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
    layers = {key.removeprefix("psp_z2_train/") for key in trainer.callback_metrics if "z2_train/" in key}
    assert layers == {"first", "trunk.part.0", "trunk", "third", "fourth"} - {"trunk"} | {"trunk.part.2"}


# --- what a reentrant checkpoint does differently --------------------------------------------------------------------


def train_reentrant(part: nn.Module, with_callback: bool) -> list[Tensor]:
    class Training(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.part = Checkpoint(part, True)

        def forward(self, features: Tensor) -> Tensor:
            result = self.part(F.silu(self.first(features)))
            hidden, (aside,) = result
            return self.third(hidden + aside)

        def on_after_backward(self) -> None:
            self.gradients.append([p.grad.clone() for p in self.parameters() if p.grad is not None])

    torch.manual_seed(0)
    module = Training().double()
    # so weak that the loss's own gradient can be compared
    callbacks = [PSPCallback(lam=1e-14)] if with_callback else []
    quiet_trainer(*callbacks, max_steps=1).fit(module, loader(1))
    return module.gradients[0]


def test_tensors_inside_other_objects_stay_cut_off():
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
            return F.relu(self.fc1(x)), [self.fc2(x)]

    found, expected = train_reentrant(Aside(), True), train_reentrant(Aside(), False)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_reentrant_without_an_input_that_needs_gradient():
    network = nn.Sequential(Checkpoint(nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True)), True), nn.Linear(8, 3))
    batch = classification_batch(5, 6)
    network, batch = network.double(), (batch[0].double(), batch[1])
    z = network[1](network[0].part(batch[0]).detach())
    loss = F.cross_entropy(z, batch[1]) + 0.5 * z.square().mean()
    expected = torch.autograd.grad(loss, list(network[1].parameters()))

    with pytest.warns(UserWarning, match="None of the inputs have requires_grad"):
        module, _ = fit(network, cross_entropy, [batch], PSPCallback(lam=0.5))

    gradients = list(module.gradients[0].values())
    assert not any(g.any() for g in gradients[:2])
    for found, wanted in zip(gradients[2:], expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_keyword_arguments_of_a_reentrant_checkpoint():
    def loss(network, batch):
        return torch.utils.checkpoint.checkpoint(network, input=batch[0], use_reentrant=True).sum()

    with pytest.raises(ValueError, match="Unexpected keyword arguments: input"):
        fit(nn.Linear(6, 3), loss, [classification_batch(5, 6)], PSPCallback())


# --- memory ----------------------------------------------------------------------------------------------------------


def bytes_of_tensors() -> int:
    gc.collect()
    storages = {}
    for found in gc.get_objects():
        if type(found) in (Tensor, nn.Parameter):
            storage = found.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


WIDTH, ROWS = 16, 512
SIZE = 8 * WIDTH * ROWS  # of one potential


class Held(Classifier):
    """Says what is held of a deep network between forward and backward."""

    def __init__(self, reentrant: bool, is_checkpointed: bool, loss_inside: bool) -> None:
        super().__init__()
        self.entrance = nn.Linear(FEATURES, WIDTH)
        parts = [nn.Linear(WIDTH, WIDTH) for _ in range(8)]
        self.parts = nn.ModuleList(parts)
        self.head = nn.Linear(WIDTH, WIDTH)
        self.reentrant, self.is_checkpointed, self.loss_inside = reentrant, is_checkpointed, loss_inside
        self.storages: list[StorageWeakRef] = []
        self.alive = self.bytes = -1

    def deep(self, x: Tensor, labels: Tensor) -> Tensor:
        for index, part in enumerate(self.parts):
            z = part(x)
            self.storages.append(StorageWeakRef(z.untyped_storage()))
            x = F.relu(z, inplace=True) if index % 2 else torch.sigmoid(z)
        if not self.loss_inside:
            return x.sum(1)
        logits = self.head(x)
        self.storages.append(StorageWeakRef(logits.untyped_storage()))
        return F.cross_entropy(logits, labels)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        features, labels = batch
        x = torch.tanh(self.entrance(features.repeat(ROWS // BATCH, 1)))
        labels = labels.repeat(ROWS // BATCH)
        checkpoint = partial(torch.utils.checkpoint.checkpoint, use_reentrant=self.reentrant)
        return (checkpoint(self.deep, x, labels) if self.is_checkpointed else self.deep(x, labels)).mean()

    def on_before_backward(self, loss: Tensor) -> None:
        self.alive = sum(not storage.expired() for storage in self.storages)
        self.bytes = bytes_of_tensors()

    def on_after_backward(self) -> None:
        pass


def train_held(callbacks: list[PSPCallback], **settings: bool) -> Held:
    torch.manual_seed(0)
    module = Held(**settings).double()
    quiet_trainer(*callbacks, max_steps=1).fit(module, loader(1))
    return module


@pytest.mark.parametrize("loss_inside", [False, True])
@KINDS
def test_no_potential_is_held(reentrant, loss_inside):
    settings = {"reentrant": reentrant, "loss_inside": loss_inside}
    bare = train_held([], is_checkpointed=True, **settings)
    penalised = train_held([PSPCallback(lam=0.1)], is_checkpointed=True, **settings)
    unchecked = train_held([PSPCallback(lam=0.1)], is_checkpointed=False, **settings)

    assert bare.alive == penalised.alive == 0
    # one potential lies outside the checkpoint
    assert penalised.bytes < bare.bytes + 1.5 * SIZE
    # what the measurement sees when potentials are held
    assert unchecked.alive >= 8
    assert unchecked.bytes > bare.bytes + 8 * SIZE


# --- errors ----------------------------------------------------------------------------------------------------------


class Overwritten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        z = self.fc(x)
        y = torch.sigmoid(z)
        z += 1
        return y + z


@KINDS
def test_overwritten_potential_is_refused(reentrant):
    batch = classification_batch(5, 6)
    with pytest.raises(RuntimeError, match=r"network\.2\.part\.fc.*overwritten in place"):
        fit(checkpointed(Overwritten, reentrant), cross_entropy, [batch], PSPCallback(), precision=32)
    assert originals_are_back()


class Forgetful(nn.Module):
    """Does without its nonlinearity when it runs again."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        z = self.fc(x)
        return z + torch.round(z) if self.runs == 1 else 2 * z


def test_potential_that_does_not_come_again_is_refused():
    callback = PSPCallback(activations=("torch.round",))
    batch = classification_batch(5, 6)
    with pytest.raises(RuntimeError, match=r"network\.2\.part\.fc.*lie inside an activation checkpoint"):
        fit(checkpointed(Forgetful, False), cross_entropy, [batch], callback, precision=32)


def test_originals_are_back_after_an_error():
    def failing(network, batch):
        network(batch[0])
        assert not originals_are_back()
        raise ZeroDivisionError

    def failing_inside(x):
        raise ZeroDivisionError

    batch = classification_batch(5, 6)
    with pytest.raises(ZeroDivisionError):
        fit(checkpointed(layer, False), failing, [batch], PSPCallback(), precision=32)
    assert originals_are_back()
    network = checkpointed(layer, False)
    with pytest.raises(ZeroDivisionError), record_potentials(network):
        torch.utils.checkpoint.checkpoint(failing_inside, batch[0], use_reentrant=False)
    assert originals_are_back()
    with record_potentials(network), record_potentials(network):
        network(batch[0])
    assert originals_are_back()


def test_a_step_goes_on_after_an_error_inside_a_checkpoint():
    """The potentials behind it are no longer taken for potentials inside."""

    def failing(x: Tensor) -> Tensor:
        raise ZeroDivisionError

    def loss(network, batch):
        x = torch.ones(2, 2, requires_grad=True)
        with pytest.raises(ZeroDivisionError):
            torch.utils.checkpoint.checkpoint(failing, x, use_reentrant=False)
        return cross_entropy(network, batch)

    case = Case("plain", lambda: around(layer()), flat, loss)
    network, (batch,) = case.build()
    step = reference_step(network, cross_entropy, batch)
    module, _ = fit(network, case.loss, [batch], PSPCallback(lam=step.balanced_lam()))
    assert_equal_gradients(module.gradients[0], step.gradients(step.balanced_lam()), 1e-8)


@KINDS
def test_validation(reentrant):
    network, (batch,) = cases(reentrant)["styles"].build()

    class Validated(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def validation_step(self, batch: Any, batch_index: int) -> None:
            self.network(batch[0])

    callback = PSPCallback()
    trainer = quiet_trainer(callback)
    trainer.validate(Validated(), loader(1), verbose=False)

    assert "psp_z2_val/network.2.part.layers.6" in trainer.callback_metrics
    assert originals_are_back()
