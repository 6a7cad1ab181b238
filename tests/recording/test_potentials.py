"""What is told of recorded potentials besides their values."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader

from lightning_psp import PSPCallback, psp_penalty, record_potentials
from tests.support.networks import SharedWeights, TwoHeads
from tests.support.reference import REDUCTIONS
from tests.support.small import quiet_trainer


def test_passes_are_counted():
    network = SharedWeights()
    with record_potentials(network) as potentials:
        network(torch.randn(4, 6))
        network(torch.randn(2, 6))
    assert potentials.passes == {"shared": 6, "head": 2}
    assert {name: len(z) for name, z in potentials.items()} == {"shared": 3 * 4 + 3 * 2, "head": 4 + 2}


def test_outputs_are_named_with_and_without_gradient():
    network = TwoHeads()
    for grad in (True, False):
        with torch.set_grad_enabled(grad), record_potentials(network) as potentials:
            first, second = network(torch.randn(4, 6))
            assert potentials.outputs == {"head1", "head2"}
            loss = F.cross_entropy(first, torch.zeros(4, dtype=torch.int64)) + second.square().mean()
        assert loss.requires_grad == grad
        assert list(potentials) == ["fc", "head1", "head2"]
        assert potentials.outputs == {"head1", "head2"}


def test_a_loss_that_reaches_one_head_makes_that_the_output():
    network = TwoHeads()
    with record_potentials(network) as potentials:
        loss = F.cross_entropy(network(torch.randn(4, 6))[1], torch.zeros(4, dtype=torch.int64))
    assert loss.requires_grad
    assert potentials.outputs == {"head2"}


def test_a_backward_pass_before_the_loss_takes_no_output_from_it():
    network = SharedWeights()
    inputs = torch.randn(4, 6, requires_grad=True)
    with record_potentials(network) as potentials:
        network(inputs).sum().backward()  # as an attack on the inputs, or a walk of an energy-based model, does
        loss = network(inputs.detach() + inputs.grad).square().mean()
    assert loss.requires_grad
    assert potentials.outputs == {"head"}
    assert potentials.passes == {"shared": 6, "head": 2}


class WithOutput(nn.Module):
    """Returns what a module of the name `output` gives, and a sum that no module gives."""

    def __init__(self):
        super().__init__()
        self.hidden, self.output = nn.Linear(6, 4), nn.Linear(4, 4)

    def forward(self, x):
        h = self.hidden(x).relu()
        return self.output(h), x[:, :4] + h


def test_an_output_without_weights_beside_a_module_of_the_name_output():
    network = WithOutput()
    with record_potentials(network) as potentials:
        first, second = network(torch.randn(3, 6))
    assert [layer for layer, _ in potentials.layers.values()] == ["hidden", "output", "output:1"]
    assert torch.equal(potentials["output"], first)
    squares = [z.square().mean().item() for z in (potentials["hidden"], first, second)]
    assert psp_penalty(potentials).item() == pytest.approx(sum(squares) / 3)


class Comparison(nn.Module):
    """Gives how far a network of its own is from targets."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x, targets):
        return (self.last(self.first(x).relu()) - targets).square().mean()


class Compared(nn.Module):
    """Returns hidden values that a further loss compares, beside a prediction that more weights lead to."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.comparison = Comparison()

    def forward(self, x):
        h = self.first(x).tanh()
        return self.head(self.second(h).tanh()), h


@pytest.mark.filterwarnings("ignore:The loss reaches comparison.last past every layer")
def test_a_module_with_a_loss_of_its_own_has_hidden_layers():
    network = Compared()
    x, y = torch.randn(4, 6), torch.randn(4, 3)
    with record_potentials(network) as potentials:
        prediction, hidden = network(x)
        loss = F.mse_loss(prediction, y) + network.comparison(hidden, y)
    assert loss.requires_grad
    assert set(potentials) == {"first", "second", "head", "comparison.first"}
    assert potentials.outputs == {"first", "head"}


def test_passes_of_other_shapes_are_entries_of_their_own():
    network = nn.Sequential(nn.Conv1d(1, 2, 2), nn.ReLU())
    with record_potentials(network) as potentials:
        for length in (3, 4, 3):
            network(torch.randn(2, 1, length))
    assert potentials.passes == {"0": 2, "0:1": 1}
    assert potentials.outputs == set(potentials)


def test_a_line_for_each_entry_is_shown():
    network = SharedWeights()
    with record_potentials(network) as potentials:
        assert repr(potentials) == "Potentials()"
        network(torch.randn(4, 6))
    assert str(potentials) == "Potentials(\n  shared [12, 6]\n  head [4, 3]\n)"


def recorded(inputs, **chosen):
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with record_potentials(network, **chosen) as potentials:
        network(inputs)
    return list(potentials)


@pytest.mark.parametrize(
    "chosen", [{"exclude": ("*",)}, {"include": ("0",), "exclude": ("0",)}, {"include": ("2",), "output": False}]
)
def test_a_choice_that_leaves_no_layer_is_an_error(chosen):
    assert recorded(torch.ones(5, 3), include=("0",), output=False) == ["0"]
    with pytest.raises(ValueError, match=r"No layer is left .* The layers of this model are: 0, 2\."):
        recorded(torch.ones(5, 3), **chosen)


def test_an_empty_batch_is_named():
    with pytest.raises(ValueError, match=r"No potential was found: the batch .* has no samples"):
        recorded(torch.ones(0, 3))


class Perceptual(LightningModule):
    """A network whose result is compared with data by what a frozen network makes of both."""

    def __init__(self):
        super().__init__()
        self.network, self.judge = nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 5), nn.Tanh()).requires_grad_(False)
        self.gradient = None

    def training_step(self, batch, batch_index):
        return (self.judge(batch) - self.judge(self.network(batch))).square().mean()

    def on_after_backward(self):
        self.gradient = self.network.weight.grad.clone()

    def configure_optimizers(self):
        return torch.optim.SGD(self.network.parameters(), lr=0.0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_pass_that_depends_on_no_trained_parameter_is_no_part_of_the_penalty(reduction):
    torch.manual_seed(0)
    module, batch = Perceptual().double(), torch.randn(4, 3, dtype=torch.float64)
    quiet_trainer(PSPCallback(lam=0.5, reduction=reduction, include=("judge.0",))).fit(module, DataLoader(batch, 4))
    with record_potentials(module, include=("judge.0",)) as potentials:
        loss = module.training_step(batch, 0)
    assert [len(z) for z in potentials.values()] == [4, 4]
    z = module.judge[0](module.network(batch))
    expected = {
        "mean": z.square().mean(),
        "sum": z.square().sum() / 2 / len(z),
        "squared_mean": z.mean(0).square().mean(),
    }
    torch.testing.assert_close(psp_penalty(potentials, reduction), expected[reduction])
    (wanted,) = torch.autograd.grad(loss + 0.5 * expected[reduction], module.network.weight)
    torch.testing.assert_close(module.gradient, wanted)


class FrozenBelow(LightningModule):
    """The first layers are frozen, and what enters them asks for its gradient, as reentrant checkpoints need it."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).requires_grad_(False)
        self.trained = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))

    def training_step(self, batch, batch_idx):
        x = batch.clone().requires_grad_()
        # A pass of the trained layer that depends on the input alone has weights that are trained all the same.
        return (self.trained(self.frozen(x)) + self.trained(x.new_ones(len(x), 4))).square().mean()

    def on_after_backward(self):
        self.gradient = [parameter.grad.clone() for parameter in self.trained.parameters()]

    def configure_optimizers(self):
        return torch.optim.SGD(self.trained.parameters(), lr=0.0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_frozen_layer_whose_input_asks_for_a_gradient_is_no_part_of_the_penalty(reduction):
    torch.manual_seed(0)
    module, batch = FrozenBelow().double(), torch.randn(4, 3, dtype=torch.float64)
    quiet_trainer(PSPCallback(lam=0.5, reduction=reduction)).fit(module, DataLoader(batch, 4))
    with record_potentials(module) as potentials:
        loss = module.training_step(batch, 0)
    assert [*potentials] == ["frozen.0", "trained.0", "trained.2"]
    assert potentials["frozen.0"].requires_grad
    assert potentials.constants == {"frozen.0"}
    found = torch.autograd.grad(loss + 0.5 * psp_penalty(potentials, reduction), [*module.trained.parameters()])
    for gradient, wanted in zip(found, module.gradient, strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_where_nothing_but_an_input_asks_for_a_gradient_all_layers_count():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).requires_grad_(False)
    with record_potentials(network) as potentials:
        network(torch.randn(4, 3, requires_grad=True))
    assert not potentials.constants
    expected = (potentials["0"].square().mean() + potentials["2"].square().mean()) / 2
    torch.testing.assert_close(psp_penalty(potentials), expected)


class Sums(nn.Module):
    """Sums terms up in a tensor with one entry, as losses of vocoders do."""

    def forward(self, *differences):
        total = torch.zeros(1)
        for difference in differences:
            total += difference.abs().mean()
        return total


@pytest.mark.parametrize("grad", [True, False])
def test_a_loss_with_one_entry_is_a_loss_as_one_without_a_dimension(grad):
    """Of the generator's output the critic's is made, and the loss takes it, too."""
    network = nn.ModuleList([nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))])
    for shape in ((), (1,)):
        with torch.set_grad_enabled(grad), record_potentials(network) as potentials:
            generated = network[0](torch.randn(5, 3))
            loss = Sums()(network[1](generated), generated - 1).reshape(shape)
        assert loss.shape == shape
        assert potentials.outputs == {"0", "1.2"}


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.mean, self.scale = nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, x):
        h = self.body(x).tanh()
        return self.mean(h), self.scale(h)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
def test_what_is_computed_of_a_batch_of_one_is_no_loss(batch, grad):
    network = TwoOutputs()
    with torch.set_grad_enabled(grad), record_potentials(network) as potentials:
        mean, _ = network(torch.randn(batch, 3))
        found = mean[:, 0] * torch.tensor(2.0) + 1
    assert found.shape == (batch,)
    assert potentials.outputs == {"mean", "scale"}
