"""Training steps that take gradients of their own, hook them, or share them out between optimisers."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional

from lightning_psp import PSPCallback
from tests.support.followed import LAM, Followed, assert_same, mean_square, potentials, total
from tests.support.small import BATCH, FEATURES, Classifier, loader, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


def seeded(kind, *arguments):
    torch.manual_seed(0)
    return kind(*arguments).double()


def fit(module, batches=1):
    trainer = quiet_trainer(PSPCallback(lam=LAM))
    trainer.fit(module, loader(batches))
    return trainer


# --- gradient penalties ----------------------------------------------------------------------------------------------


class Critic(Classifier):
    """A Wasserstein critic whose gradient with respect to its input is kept at length 1."""

    def __init__(self, name, manual):
        super().__init__()
        del self.first, self.second, self.third
        self.name = name
        self.automatic_optimization = not manual
        activation = {"relu": nn.ReLU(inplace=True), "leaky": nn.LeakyReLU(0.2), "tanh": nn.Tanh(), "silu": nn.SiLU()}
        self.activation = activation[name]
        self.net = nn.Sequential(nn.Linear(FEATURES, 8), self.activation, nn.Linear(8, 1))
        self.fake = torch.randn(BATCH, FEATURES, dtype=torch.float64)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_index):
        real = batch[0]
        between = (0.3 * real + 0.7 * self.fake).requires_grad_()
        loss = self(self.fake).mean() - self(real).mean()
        (slope,) = torch.autograd.grad(self(between).sum(), between, create_graph=True)
        loss = loss + 10 * ((slope.norm(dim=1) - 1) ** 2).mean()
        if not self.automatic_optimization:
            self.manual_backward(loss)
        return loss

    def on_after_backward(self):
        self.gradients.append([parameter.grad.clone() for parameter in self.parameters()])


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("name", ["relu", "leaky", "tanh", "silu"])
def test_penalty_on_the_gradient_of_a_critic(name, manual):
    module = seeded(Critic, name, manual)
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), 0.0)
    trainer = fit(module)

    real = next(iter(loader(1)))[0]
    between = (0.3 * real + 0.7 * module.fake).requires_grad_()
    function = {"relu": torch.relu, "leaky": lambda z: functional.leaky_relu(z, 0.2), "tanh": torch.tanh}
    function = function.get(name, functional.silu)
    first, _, second = module.net
    hidden = [first(x) for x in (module.fake, real, between)]
    out = [second(function(z)) for z in hidden]
    (slope,) = torch.autograd.grad(out[2].sum(), between, create_graph=True)
    loss = out[0].mean() - out[1].mean() + 10 * ((slope.norm(dim=1) - 1) ** 2).mean()
    # The loss depends on the third pass's hidden potentials, through the slope there, and not on its output.
    penalty = (mean_square(*hidden) + mean_square(*out[:2])) / 2
    expected = torch.autograd.grad(loss + LAM * penalty, list(module.parameters()))
    assert_same(module.gradients[0], expected)
    assert trainer.callback_metrics["psp/penalty"].item() == pytest.approx(LAM * penalty.item(), rel=1e-6)


class Adapted(Followed):
    """Its loss is that of the weights after a step of their own, differentiated through."""

    def __init__(self):
        super().__init__()
        del self.first, self.second, self.third
        self.net = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 3))

    def adapt(self, loss, weights):
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        return {name: w - 0.1 * g for (name, w), g in zip(weights.items(), gradients, strict=True)}

    def training_step(self, batch, batch_index):
        self.batch = batch
        features, labels = batch
        weights = dict(self.net.named_parameters())
        weights = self.adapt(functional.cross_entropy(self.net(features), labels), weights)
        return functional.cross_entropy(torch.func.functional_call(self.net, weights, (features + 1,)), labels)

    def on_after_backward(self):
        Classifier.on_after_backward(self)
        features, labels = self.batch

        def layers(w, x):
            z = x @ w["0.weight"].T + w["0.bias"]
            return z, torch.tanh(z) @ w["2.weight"].T + w["2.bias"]

        with torch.enable_grad():
            weights = dict(self.net.named_parameters())
            first, out = layers(weights, features)
            adapted = self.adapt(functional.cross_entropy(out, labels), weights)
            later_first, later_out = layers(adapted, features + 1)
            loss = functional.cross_entropy(later_out, labels)
            penalty = (mean_square(first, later_first) + mean_square(out, later_out)) / 2
            self.expected.append(torch.autograd.grad(loss + LAM * penalty, list(self.parameters())))


def test_a_loss_after_a_step_that_is_differentiated_through():
    module = seeded(Adapted)
    fit(module, batches=2)
    module.check(steps=2)


class ForwardMode(Followed):
    """Its loss has the derivative of the network along a direction, taken in the forward pass."""

    def training_step(self, batch, batch_index):
        self.batch = features, labels = batch
        with forward_ad.dual_level():
            found = forward_ad.unpack_dual(self(forward_ad.make_dual(features, torch.ones_like(features))))
            return functional.cross_entropy(found.primal, labels) + found.tangent.square().mean()

    def on_after_backward(self):
        Classifier.on_after_backward(self)
        with torch.enable_grad():
            first, second, _ = potentials(self, self.batch[0])
            sigmoid = torch.sigmoid(first)
            along = self.first.weight.sum(1) * sigmoid * (1 + first * (1 - sigmoid))
            loss = ((along @ self.second.weight.T * (second > 0)) @ self.third.weight.T).square().mean()
            loss = loss + total(self, self.batch)
            self.expected.append(torch.autograd.grad(loss, list(self.parameters())))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own use of it
def test_a_derivative_in_forward_mode():
    module = seeded(ForwardMode)
    fit(module, batches=2)
    module.check(steps=2)


@pytest.mark.parametrize(
    ("transform", "remedy"), [(torch.func.grad, "torch.autograd.grad"), (torch.func.vmap, "on the batch")]
)
def test_function_transforms_are_refused(transform, remedy):
    class Transformed(Followed):
        def training_step(self, batch, batch_index):
            features = batch[0][0] if transform is torch.func.grad else batch[0]
            slope = transform(lambda x: self(x[None]).sum())(features)
            return slope.square().sum() + functional.cross_entropy(self(batch[0]), batch[1])

    with pytest.raises(NotImplementedError, match=remedy):
        fit(seeded(Transformed))


# --- hooks -----------------------------------------------------------------------------------------------------------


class Hooked(Followed):
    """A hook on the loss triples its gradient; the penalty is not the loss's."""

    def __init__(self, manual):
        super().__init__()
        self.automatic_optimization = not manual
        self.seen = []

    def triple(self, gradient):
        self.seen.append(gradient.item())
        return 3 * gradient

    def training_step(self, batch, batch_index):
        loss = super().training_step(batch, batch_index)
        loss.register_hook(self.triple)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def on_after_backward(self):
        Classifier.on_after_backward(self)
        with torch.enable_grad():
            loss = 3 * total(self, self.batch, lam=LAM / 3)
            self.expected.append(torch.autograd.grad(loss, list(self.parameters())))


@pytest.mark.parametrize("manual", [False, True])
def test_a_hook_of_the_user_on_the_loss(manual):
    module = seeded(Hooked, manual)
    fit(module, batches=2)
    module.check(steps=2)
    assert module.seen == [1.0, 1.0]


def test_a_loss_that_is_overwritten_before_its_backward_pass_is_refused():
    module = seeded(Followed)
    module.on_before_backward = lambda loss: loss.mul_(2)
    with pytest.raises(RuntimeError, match="Change the loss in `training_step`"):
        fit(module)


def test_hooks_of_the_user_on_parameters_get_the_whole_gradient():
    module = seeded(Followed)
    seen = []
    module.first.weight.register_hook(lambda gradient: seen.append(gradient.clone()))
    module.first.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    fit(module)
    module.check(steps=1)
    assert_same(seen[:2], [module.expected[0][0]] * 2)


# --- two optimisers --------------------------------------------------------------------------------------------------


class Toggled(Classifier):
    """A GAN that makes a generator's image twice, and freezes one network while the other is trained."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        del self.first, self.second, self.third, self.relu
        self.generator = nn.Sequential(nn.Linear(2, 5), nn.ReLU(inplace=True), nn.Linear(5, FEATURES))
        self.critic = nn.Sequential(nn.Linear(FEATURES, 5), nn.LeakyReLU(0.2, inplace=True), nn.Linear(5, 1))
        self.noise = torch.randn(BATCH, 2, dtype=torch.float64)
        self.found, self.expected = [], []

    def on_after_backward(self):
        """The gradients are kept in the step."""

    def configure_optimizers(self):
        return [torch.optim.SGD(net.parameters(), 0.1) for net in (self.generator, self.critic)]

    def training_step(self, batch, batch_index):
        real = batch[0]
        for optimizer, network, turn in zip(
            self.optimizers(), (self.generator, self.critic), (self.generate, self.discriminate), strict=True
        ):
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(turn(real))
            self.found.append([parameter.grad.clone() for parameter in network.parameters()])
            self.expected.append(self.reference(network, real))
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def generate(self, real):
        return functional.softplus(-self.critic(self.generator(self.noise))).mean()

    def discriminate(self, real):
        fake = self.generator(self.noise)
        return functional.softplus(-self.critic(real)).mean() + functional.softplus(self.critic(fake)).mean()

    def reference(self, network, real):
        """Only matrix products and comparisons, which are no nonlinearities to the callback."""
        g1, _, g2 = self.generator
        c1, _, c2 = self.critic

        def linear(layer, x):
            return x @ layer.weight.T + layer.bias

        def judge(x):
            z = linear(c1, x)
            return z, linear(c2, torch.where(z > 0, z, 0.2 * z))

        def soft(x):
            return (1 + x.exp()).log().mean()

        a = linear(g1, self.noise)
        b = linear(g2, a.clamp(min=0))
        if network is self.generator:
            c, d = judge(b)
            loss = soft(-d) + LAM * sum(mean_square(z) for z in (a, c, d)) / 3
        else:
            (c, d), (e, f) = judge(real), judge(b)
            loss = soft(-d) + soft(f) + LAM * (mean_square(c, e) + mean_square(d, f)) / 2
        return torch.autograd.grad(loss, list(network.parameters()))


def test_toggled_optimisers():
    module = seeded(Toggled)
    fit(module, batches=2)
    assert len(module.found) == 4
    for found, expected in zip(module.found, module.expected, strict=True):
        assert_same(found, expected)
