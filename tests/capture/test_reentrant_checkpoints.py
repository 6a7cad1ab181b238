"""What a reentrant activation checkpoint does differently: cut graphs, errors, random numbers, arguments by keyword."""

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from lightning_psp import PSPCallback, record_potentials
from tests.support.cases import Case, classification_batch, cross_entropy
from tests.support.cases.checkpoints import (
    Checkpoint,
    around,
    flat,
    layer,
)
from tests.support.gradients import assert_equal_gradients
from tests.support.lightning_cases import fit
from tests.support.small import Classifier, loader, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


class Aside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        return F.relu(self.fc1(x)), [self.fc2(x)]


def train_with_aside(*callbacks: PSPCallback) -> list[Tensor]:
    class Training(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.part = Checkpoint(Aside(), True)

        def forward(self, features: Tensor) -> Tensor:
            hidden, (aside,) = self.part(F.silu(self.first(features)))
            return self.third(hidden + aside)

        def on_after_backward(self) -> None:
            self.gradients.append([p.grad.clone() for p in self.parameters() if p.grad is not None])

    torch.manual_seed(0)
    module = Training().double()
    quiet_trainer(*callbacks, max_steps=1).fit(module, loader(1))
    return module.gradients[0]


def test_tensors_inside_other_objects_stay_cut_off():
    # so weak that the gradient is the loss's own
    for found, expected in zip(train_with_aside(PSPCallback(lam=1e-14)), train_with_aside(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


class Changing(nn.Module):
    """Its second pass computes the same in other types, which a reentrant checkpoint does not mind."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        scale = torch.full((5, 8), 2, dtype=torch.float64 if self.runs == 1 else torch.float32)
        return F.relu(self.fc(x), inplace=True) * scale


def test_reentrant_without_a_check_of_types():
    batch = classification_batch(5, 6)
    gradients = []
    for wrap in (lambda part: part, lambda part: Checkpoint(part, True)):
        network, (batch,) = Case("changing", lambda wrap=wrap: around(wrap(Changing())), flat).build()
        module, _ = fit(network, cross_entropy, [batch], PSPCallback(lam=0.5))
        gradients.append({name.replace("part.", ""): g for name, g in module.gradients[0].items()})
    assert_equal_gradients(gradients[1], gradients[0], 1e-8)


@pytest.mark.parametrize("preserved", [False, True])
def test_reentrant_draws_the_same_random_numbers(preserved):
    states = []
    for callbacks in ([], [PSPCallback(lam=0.5)]):
        part = Checkpoint(nn.Dropout(0.5), True, preserve_rng_state=preserved)
        module = Classifier()
        module.relu = nn.Sequential(module.relu, part)
        torch.manual_seed(0)
        quiet_trainer(*callbacks, max_steps=1).fit(module, loader(1))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_gradient_that_is_enabled_inside_a_checkpoint():
    def adapted(x: Tensor) -> Tensor:
        with torch.enable_grad():
            return F.relu(x * weight, inplace=True).sum()

    def loss(network, batch):
        with torch.no_grad():
            inside = torch.utils.checkpoint.checkpoint(adapted, batch[0], use_reentrant=False)
        return cross_entropy(network, batch) + inside

    weight = nn.Parameter(torch.full((6,), 0.5, dtype=torch.float64))
    case = Case("plain", lambda: around(layer()), flat, loss)
    network, (batch,) = case.build()
    fit(network, loss, [batch], PSPCallback(lam=0.5))

    z = batch[0] * weight
    penalised = F.relu(z).sum() + 0.5 * z.square().mean() / 5  # four layers more are the network's
    torch.testing.assert_close(weight.grad, *torch.autograd.grad(penalised, weight), rtol=1e-10, atol=1e-12)


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


class CheckpointFunction(torch.autograd.Function):
    """As other libraries have one."""

    @staticmethod
    def forward(ctx, function, x):
        ctx.function = function
        ctx.save_for_backward(x)
        with torch.no_grad():
            return function(x)

    @staticmethod
    def backward(ctx, gradient):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            ctx.function(x).backward(gradient)
        return None, x.grad


class OfAnotherLibrary(Classifier):
    def forward(self, features: Tensor) -> Tensor:
        return self.third(CheckpointFunction.apply(lambda x: F.relu(self.second(x)), F.silu(self.first(features))))


def test_checkpoints_of_another_library_are_refused():
    with pytest.raises(NotImplementedError, match="reentrant activation checkpoint that is not torch's own"):
        quiet_trainer(PSPCallback(), max_steps=1).fit(OfAnotherLibrary().double(), loader(1))
    network = OfAnotherLibrary().double()
    features, _ = next(iter(loader(1)))
    with pytest.raises(NotImplementedError, match="use_reentrant=False"), record_potentials(network):
        network(features)
    with record_potentials(network, include=("first",)) as potentials:
        features = F.silu(network.first(features))
    assert list(potentials) == ["first"]


def test_checkpoints_before_the_block_are_refused():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    hidden = torch.utils.checkpoint.checkpoint(first, torch.ones(2, 4, requires_grad=True), use_reentrant=True)
    with pytest.raises(NotImplementedError, match="called outside of what is watched"), record_potentials(second):
        torch.tanh(second(hidden))


def test_passes_on_data_hide_no_checkpoint():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False)
    hidden = torch.utils.checkpoint.checkpoint(first, torch.ones(2, 4, requires_grad=True), use_reentrant=True)
    with pytest.raises(NotImplementedError, match="called outside of what is watched"), record_potentials(second):
        [torch.tanh(second(x)) for x in (hidden, torch.ones(2, 4))]
