"""Which tensor is the output layer, for losses of every kind."""

from dataclasses import dataclass
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_psp import PSPCallback, record_potentials
from tests.support.small import BATCH, FEATURES, Classifier, loader, quiet_trainer

LAM = 0.3
pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


@dataclass
class Outputs:
    values: torch.Tensor


class Network(nn.Module):
    """One hidden layer."""

    def __init__(self, outputs=1, wrap=lambda y: y):
        super().__init__()
        self.hidden, self.out = nn.Linear(FEATURES, 5), nn.Linear(5, outputs)
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.out(torch.tanh(self.hidden(x))))

    def potentials(self, x):
        hidden = self.hidden(x)
        return [hidden, self.out(torch.tanh(hidden))]


class Regression(Classifier):
    def __init__(self, network, loss):
        super().__init__()
        self.network, self.loss = network, loss
        self.pool, self.distance = nn.AvgPool1d(1), nn.PairwiseDistance()
        self.teacher = Network()
        for parameter in [*self.first.parameters(), *self.second.parameters(), *self.third.parameters()]:
            parameter.requires_grad_(False)

    def training_step(self, batch, batch_index):
        return self.loss(self, batch[0])

    def on_after_backward(self):
        self.gradients.append([parameter.grad.clone() for parameter in self.network.parameters()])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)  # the reference is computed after the step


def teacher_last(module, x):
    y = module.network(x)
    with torch.no_grad():
        target = module.teacher(x)
    return (y - target).square().mean()


LOSSES = {
    "mean squared error": lambda m, x: functional.mse_loss(m.network(x), x[:, :1]),
    "arguments exchanged": lambda m, x: functional.mse_loss(x[:, :1], m.network(x)),
    "written out": lambda m, x: (m.network(x) - x[:, :1]).square().mean(),
    "module": lambda m, x: nn.SmoothL1Loss()(m.network(x), x[:, :1]),
    "teacher last": teacher_last,
    "masked in the loss": lambda m, x: functional.mse_loss(m.network(x) * 2, x[:, :1] * 2),
    "pooling loss": lambda m, x: functional.mse_loss(m.pool(m.network(x)), m.pool(x[:, :1])),
    "pooled in the loss": lambda m, x: (m.pool(m.network(x)) - m.pool(x[:, :1])).abs().mean(),
    "distance last": lambda m, x: m.distance(m.network(x), x[:, :1]).mean(),
    "squeezed": lambda m, x: functional.l1_loss(m.network(x).squeeze(1), x[:, 0]),
    "softplus": lambda m, x: functional.softplus(-m.network(x)).mean(),
    "hinge": lambda m, x: functional.relu(1 - m.network(x)).mean(),
    "two sigmoids": lambda m, x: (lambda y: (y.sigmoid() * x[:, :1]).sum() / y.sigmoid().sum())(m.network(x)),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_network_output_is_penalised_once(loss):
    torch.manual_seed(0)
    module = Regression(Network(), loss).double()
    quiet_trainer(PSPCallback(lam=LAM)).fit(module, loader(1))
    x, _ = next(iter(loader(1)))
    total = loss(module, x) + LAM * sum(z.square().mean() for z in module.network.potentials(x)) / 2
    for found, expected in zip(
        module.gradients[0], torch.autograd.grad(total, list(module.network.parameters())), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


# Further nonlinearities of losses, at the values of two calls or at others than the output's.
MORE_LOSSES = {
    "softplus of two calls": lambda m, x: (
        lambda one, other: (functional.softplus(-one) + functional.softplus(other)).mean()
    )(m.network(x), m.network(x + 1.0)),
    "scaled sigmoid": lambda m, x: torch.sigmoid(2.0 * m.network(x)).mean(),
    "in place": lambda m, x: (m.network(x) + 1.0).relu_().mean(),
}
COMPILED = ("softplus", "hinge", *MORE_LOSSES)


@pytest.mark.parametrize(
    ("name", "is_compiled"),
    [(name, False) for name in (*LOSSES, *MORE_LOSSES)] + [(name, True) for name in COMPILED],
)
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_loss_among_recorded_potentials_adds_none(name, is_compiled):
    torch.manual_seed(0)
    module = Regression(Network(), {**LOSSES, **MORE_LOSSES}[name]).double()
    step = torch.compile(module.training_step, backend="aot_eager") if is_compiled else module.training_step
    batch = next(iter(loader(1)))
    with record_potentials(module.network) as potentials:
        step(batch, 0)
    inputs = torch.cat([batch[0], batch[0] + 1.0]) if name == "softplus of two calls" else batch[0]
    assert list(potentials) == ["hidden", "out"]
    for z, expected in zip(potentials.values(), module.network.potentials(inputs), strict=True):
        torch.testing.assert_close(z, expected)


@pytest.mark.parametrize(
    "loss",
    [lambda y: functional.softplus(-y).mean(), lambda y: functional.relu(1.0 - y).mean()],
    ids=["softplus", "relu"],
)
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own
def test_a_loss_compiled_on_its_own_adds_none(loss):
    network = Network().double()
    compiled = torch.compile(loss, backend="aot_eager")
    with record_potentials(network) as potentials:
        compiled(network(next(iter(loader(1)))[0]))
    assert list(potentials) == ["hidden", "out"]


def test_a_named_activation_in_a_loss_adds_none():
    network, act = Network().double(), nn.Hardtanh()
    with record_potentials(network, activations=(nn.Hardtanh,)) as potentials:
        act(2.0 * network(next(iter(loader(1)))[0])).mean()
    assert list(potentials) == ["hidden", "out"]


def check(module, total):
    for found, expected in zip(
        module.gradients[0], torch.autograd.grad(total, list(module.network.parameters())), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_every_output_of_the_network_that_a_loss_names():
    class Two(Network):
        def __init__(self):
            super().__init__()
            self.second = nn.Linear(5, 2)

        def forward(self, x):
            hidden = torch.tanh(self.hidden(x))
            return self.out(hidden), self.second(hidden)

    def loss(m, x):
        y, mean = m.network(x)
        return functional.mse_loss(y, x[:, :1]) + mean.square().sum()

    torch.manual_seed(0)
    module = Regression(Two(), loss).double()
    quiet_trainer(PSPCallback(lam=LAM)).fit(module, loader(1))
    x, _ = next(iter(loader(1)))
    y, mean = module.network(x)
    penalty = (module.network.hidden(x).square().mean() + y.square().mean() + mean.square().mean()) / 3
    check(module, loss(module, x) + LAM * penalty)


def test_experts_without_samples():
    class Experts(Network):
        def __init__(self):
            super().__init__()
            self.idle = nn.Linear(FEATURES, 5)

        def forward(self, x):
            hidden = torch.cat([torch.tanh(self.hidden(x)), torch.tanh(self.idle(x[:0]))])
            return self.out(hidden)

    torch.manual_seed(0)
    module = Regression(Experts(), LOSSES["mean squared error"]).double()
    module.on_after_backward = lambda: module.gradients.append(
        [p.grad.clone() for p in (module.network.hidden.weight, module.network.out.weight)]
    )
    quiet_trainer(PSPCallback(lam=LAM)).fit(module, loader(1))
    x, _ = next(iter(loader(1)))
    total = LOSSES["mean squared error"](module, x)
    total = total + LAM * sum(z.square().mean() for z in module.network.potentials(x)) / 2
    weights = [module.network.hidden.weight, module.network.out.weight]
    for found, expected in zip(module.gradients[0], torch.autograd.grad(total, weights), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "wrap", [lambda y: (y,), lambda y: {"values": y}, Outputs, lambda y: [{"deep": Outputs(y)}]], ids=range(4)
)
def test_outputs_in_containers(wrap):
    def unwrap(y):
        while not isinstance(y, torch.Tensor):
            y = y[0] if isinstance(y, (tuple, list)) else next(iter((y if isinstance(y, dict) else vars(y)).values()))
        return y

    torch.manual_seed(0)
    module = Regression(Network(wrap=wrap), lambda m, x: unwrap(m.network(x)).square().sum(1).sqrt().mean()).double()
    trainer = quiet_trainer(PSPCallback(lam=LAM))
    trainer.fit(module, loader(1))
    layers = {key.split("/")[1] for key in trainer.callback_metrics if key.startswith("psp_z2_train")}
    assert layers == {"network.hidden", "network.out"}


def test_losses_of_two_backward_passes_do_not_mix():
    class Two(Regression):
        def __init__(self):
            super().__init__(Network(3), None)
            self.automatic_optimization = False

        def training_step(self, batch, batch_index):
            x, labels = batch
            self.manual_backward(functional.cross_entropy(self.network(x), labels))
            self.manual_backward((self.network(x + 1) - 1).abs().sum(1).mean())

    torch.manual_seed(0)
    module = Two().double()
    quiet_trainer(PSPCallback(lam=LAM)).fit(module, loader(1))
    x, labels = next(iter(loader(1)))
    total = functional.cross_entropy(module.network(x), labels) + (module.network(x + 1) - 1).abs().sum(1).mean()
    for inputs in (x, x + 1):
        total = total + LAM * sum(z.square().mean() for z in module.network.potentials(inputs)) / 2
    for found, expected in zip(
        module.gradients[1], torch.autograd.grad(total, list(module.network.parameters())), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "make", [lambda z: z.unfold(1, 3, 1), lambda z: z[:, None].expand(-1, 3, -1), lambda z: z.t().contiguous().t()]
)
def test_potentials_of_any_layout_in_memory(make):
    def loss(m, x):
        return m.network.out(torch.relu(make(m.network.hidden(x))).flatten(1)[:, :5]).square().mean()

    torch.manual_seed(0)
    module = Regression(Network(), loss).double()
    quiet_trainer(PSPCallback(lam=LAM)).fit(module, loader(1))
    x, _ = next(iter(loader(1)))
    hidden = make(module.network.hidden(x))
    out = module.network.out(torch.relu(hidden).flatten(1)[:, :5])
    total = loss(module, x) + LAM * (hidden.square().mean() + out.square().mean()) / 2
    for found, expected in zip(
        module.gradients[0], torch.autograd.grad(total, list(module.network.parameters())), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_an_empty_first_batch_is_passed_over():
    class Empty(Classifier):
        def training_step(self, batch, batch_index):
            return self(batch[0][: BATCH * (batch_index > 0)]).sum()

    trainer = quiet_trainer(PSPCallback(lam=LAM))
    trainer.fit(Empty(), loader(2))
    assert float(trainer.callback_metrics["psp/penalty"]) > 0


def test_nan_is_reported_with_the_layer():
    class Broken(Classifier):
        def training_step(self, batch, batch_index):
            features, labels = batch
            return functional.cross_entropy(self(features * float("nan")), labels)

    with pytest.warns(UserWarning, match="'first' hold NaN or infinity"):
        quiet_trainer(PSPCallback(lam=LAM)).fit(Broken(), loader(1))


def test_an_epoch_without_penalty_is_said():
    class Unheard(Classifier):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_index):
            features, labels = batch
            weights = list(self.parameters())
            gradients = torch.autograd.grad(functional.cross_entropy(self(features), labels), weights)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient

    with pytest.warns(UserWarning, match="No penalty was added"):
        quiet_trainer(PSPCallback(lam=LAM)).fit(Unheard(), loader(1))


def test_a_nonlinearity_that_training_hides_is_said():
    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(context, z):
            y = torch.sigmoid(z)
            context.save_for_backward(y)
            return y

        @staticmethod
        def backward(context, gradient):
            (y,) = context.saved_tensors
            return gradient * y * (1 - y)

    class Uses(Classifier):
        def forward(self, features):
            return self.third(Hidden.apply(self.first(features)))

        def on_after_backward(self):
            pass

    with (
        pytest.warns(UserWarning, match="No layer was found for .*Hidden"),
        pytest.warns(UserWarning, match="in no training step.*first"),
    ):
        quiet_trainer(PSPCallback(lam=LAM)).fit(Uses(), loader(1), loader(1))


def test_weight_parametrisations_make_no_layers():
    class Positive(nn.Module):
        def forward(self, weight):
            return functional.softplus(weight - 1)

    module = Classifier()
    nn.utils.parametrize.register_parametrization(module.third, "weight", Positive())
    module.on_after_backward = lambda: None
    trainer = quiet_trainer(PSPCallback(lam=LAM))
    trainer.fit(module, loader(1))
    layers = {key.split("/")[1] for key in trainer.callback_metrics if key.startswith("psp_z2_train")}
    assert layers == {"first", "second", "third"}


def test_a_nonlinearity_whose_result_is_not_used_is_no_layer_of_the_penalty():
    class Dead(Network):
        def forward(self, x):
            z = self.hidden(x)
            torch.tanh(z)
            return self.out(torch.relu(z))

    torch.manual_seed(0)
    module = Regression(Dead(), LOSSES["mean squared error"]).double()
    quiet_trainer(PSPCallback(lam=LAM)).fit(module, loader(1))
    x, _ = next(iter(loader(1)))
    hidden = module.network.hidden(x)
    penalty = (hidden.square().mean() + module.network.out(torch.relu(hidden)).square().mean()) / 2
    check(module, LOSSES["mean squared error"](module, x) + LAM * penalty)


@pytest.mark.parametrize("hold", [lambda z: z[:, :2], lambda z: z.detach(), lambda z: z.view(-1)])
def test_other_holders_of_a_potential_see_it_overwritten_as_without_the_callback(hold):
    values = []

    class Held(Network):
        def forward(self, x):
            z = self.hidden(x)
            other = hold(z)
            functional.relu_(z)
            values.append(other.detach().clone())
            return self.out(z)

    for callbacks in ([PSPCallback(lam=LAM)], []):
        torch.manual_seed(0)
        module = Regression(Held(), LOSSES["mean squared error"]).double()
        quiet_trainer(*callbacks).fit(module, loader(1))
    assert torch.equal(*values)


@pytest.mark.parametrize(
    ("choice", "left_out"),
    [({}, ["first"]), ({"output": False}, ["first"]), ({"layer_lam": {"second": 0.0}}, ["first"])],
    ids=["all", "no output", "factor 0"],
)
def test_layers_off_every_path_are_named_and_no_others(choice, left_out):
    class Frozen(Classifier):
        def __init__(self):
            super().__init__()
            self.first.requires_grad_(False)

        def on_after_backward(self):
            pass

    with patch("lightning_psp.lightnings.messages.rank_zero_info") as said:
        quiet_trainer(PSPCallback(lam=LAM, **choice), max_epochs=2).fit(Frozen(), loader(1))
    first, message = [call.args[0] for call in said.call_args_list]
    assert first.startswith("PSPCallback penalises")
    assert message.endswith(f"to a loss: {', '.join(left_out)}.")
