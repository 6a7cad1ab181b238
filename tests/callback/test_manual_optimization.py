"""Several backward passes in one step: each potential is penalised once, in the first pass that reaches it."""

from contextlib import suppress

import pytest
import torch
from torch.nn import functional

from lightning_psp import PSPCallback
from tests.support.gan import Gan
from tests.support.small import BATCH, Classifier, loader, quiet_trainer

LAM = 0.3
pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


def mean_square(*tensors):
    return torch.cat([tensor.flatten() for tensor in tensors]).square().mean()


def assert_close(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_gan():
    torch.manual_seed(0)
    module = Gan().double()
    trainer = quiet_trainer(PSPCallback(lam=LAM), max_steps=1)
    trainer.fit(module, loader(1))

    features, _ = next(iter(loader(1)))
    g1, _, g2, _ = module.generator
    d1, _, d2 = module.discriminator

    def discriminate(x):
        z1 = d1(x)
        return z1, d2(functional.leaky_relu(z1, 0.2))

    a = g1(module.noise)
    b = g2(torch.relu(a))
    c, d = discriminate(torch.tanh(b))
    loss = functional.softplus(-d).mean() + LAM * sum(mean_square(z) for z in (a, b, c, d)) / 4
    assert_close(module.found[0], torch.autograd.grad(loss, list(module.generator.parameters())))

    real1, real2 = discriminate(features)
    fake1, fake2 = discriminate(torch.tanh(b).detach())
    loss = functional.softplus(-real2).mean() + functional.softplus(fake2).mean()
    loss = loss + LAM * (mean_square(real1, fake1) + mean_square(real2, fake2)) / 2
    assert_close(module.found[1], torch.autograd.grad(loss, list(module.discriminator.parameters())))
    assert {key for key in trainer.callback_metrics if key.startswith("psp_z2_train")} == {
        f"psp_z2_train/{layer}" for layer in ("generator.0", "generator.2", "discriminator.0", "discriminator.2")
    }


@pytest.mark.parametrize("returns", [False, True])
def test_the_output_layer_is_what_enters_the_losses_after_their_backward_passes_too(returns):
    class Relativistic(Gan):
        """Real features are to have larger scores than generated ones, and the other way round."""

        def training_step(self, batch, batch_index):
            real, fake = self.discriminator(batch[0]), self.discriminator(self.generator(self.noise))
            self.logits = real - fake.mean(), real.mean() - fake
            loss = sum(functional.binary_cross_entropy_with_logits(z, torch.ones_like(z)) for z in self.logits)
            self.manual_backward(loss)
            return real.mean() + fake.mean() if returns else None

    trainer, module = quiet_trainer(PSPCallback(lam=LAM), max_steps=1), Relativistic().double()
    trainer.fit(module, loader(1))
    found = trainer.callback_metrics["psp_z2_train/discriminator.2"].item()
    assert found == pytest.approx(mean_square(*module.logits).item(), rel=1e-6)  # float32


class Manual(Classifier):
    """One backward pass, written as the subclass says."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_index):
        features, labels = batch
        self.run_backward(self(features), labels)

    def run_backward(self, logits, labels):
        self.manual_backward(functional.cross_entropy(logits, labels))


def reference(module, loss, reductions=1.0):
    features, labels = next(iter(loader(1)))
    first = module.first(features)
    second = module.second(functional.silu(first))
    third = module.third(torch.relu(second))
    penalty = (mean_square(first) + mean_square(second) + mean_square(third)) / 3
    return torch.autograd.grad(loss(third, labels) + reductions * LAM * penalty, list(module.parameters()))


class Root(Manual):
    def run_backward(self, logits, labels):
        loss = functional.cross_entropy(logits, labels).sqrt()
        before = loss.item()
        self.manual_backward(loss)
        assert loss.item() == before


class Exponential(Manual):
    def run_backward(self, logits, labels):
        self.manual_backward(functional.cross_entropy(logits, labels).exp())


class Vector(Manual):
    def run_backward(self, logits, labels):
        loss = functional.cross_entropy(logits, labels, reduction="none")
        self.manual_backward(loss, gradient=torch.full_like(loss, 0.5 / BATCH))


class Unbound(Manual):
    def run_backward(self, logits, labels):
        losses = functional.cross_entropy(logits, labels, reduction="none").reshape(2, 2).mean(0)
        self.manual_backward(losses.unbind()[0])


@pytest.mark.parametrize(
    ("kind", "loss", "scale"),
    [
        (Manual, functional.cross_entropy, 1.0),
        (Root, lambda z, y: functional.cross_entropy(z, y).sqrt(), 1.0),
        (Exponential, lambda z, y: functional.cross_entropy(z, y).exp(), 1.0),
        (Vector, lambda z, y: 0.5 * functional.cross_entropy(z, y), 0.5),  # the weights of `gradient` add up to 0.5
        (Unbound, lambda z, y: functional.cross_entropy(z[::2], y[::2]), 1.0),
    ],
)
def test_losses_of_manual_optimisation(kind, loss, scale):
    torch.manual_seed(0)
    module = kind().double()
    quiet_trainer(PSPCallback(lam=LAM), max_epochs=1).fit(module, loader(1))
    assert_close(module.gradients[0], reference(module, loss, scale))


def test_optimisers_that_step_within_the_backward_pass():
    """Of which Lightning knows nothing, and has no other."""

    class WithinBackward(Manual):
        def configure_optimizers(self):
            self.steps = {p: torch.optim.SGD([p], lr=0.1) for p in self.parameters()}
            self.found = {}
            for parameter in self.parameters():
                parameter.register_post_accumulate_grad_hook(self.step)

        def step(self, parameter):
            self.found[parameter] = parameter.grad.clone()
            self.steps[parameter].step()
            parameter.grad = None

        def training_step(self, batch, batch_index):
            expected = reference(self, functional.cross_entropy)
            super().training_step(batch, batch_index)
            assert_close([self.found[p] for p in self.parameters()], expected)

        def on_after_backward(self):
            """The gradients are gone."""

    module = WithinBackward().double()
    with pytest.warns(UserWarning, match="returned `None`"):
        quiet_trainer(PSPCallback(lam=LAM), max_epochs=2).fit(module, loader(1))
    assert len(module.found) == 6


def test_a_graph_that_is_kept_is_penalised_once():
    class Twice(Manual):
        def run_backward(self, logits, labels):
            loss = functional.cross_entropy(logits, labels)
            self.manual_backward(loss, retain_graph=True)
            self.manual_backward(loss)

    torch.manual_seed(0)
    module = Twice().double()
    quiet_trainer(PSPCallback(lam=LAM)).fit(module, loader(1))
    assert_close(module.gradients[1], reference(module, lambda z, y: 2 * functional.cross_entropy(z, y)))


def test_a_backward_that_no_callback_hears_of_is_said():
    class Unheard(Manual):
        def run_backward(self, logits, labels):
            functional.cross_entropy(logits, labels).backward()

    with pytest.warns(UserWarning, match="self.manual_backward"):
        quiet_trainer(PSPCallback(lam=LAM)).fit(Unheard(), loader(1))


@pytest.mark.parametrize("backward", [torch.autograd.backward, torch.Tensor.backward])
def test_a_backward_that_no_callback_hears_of_is_said_beside_one_that_it_does(backward):
    class HalfHeard(Manual):
        def run_backward(self, logits, labels):
            self.manual_backward(functional.cross_entropy(logits, labels))
            features, _ = next(iter(loader(1)))
            backward(functional.cross_entropy(self(features), labels))

    with pytest.warns(UserWarning, match="self.manual_backward"):
        quiet_trainer(PSPCallback(lam=LAM)).fit(HalfHeard(), loader(1))


@pytest.mark.filterwarnings("error:.*manual_backward")
def test_gradients_that_are_only_looked_at_are_no_backward():
    class Weighed(Manual):
        def run_backward(self, logits, labels):
            loss = functional.cross_entropy(logits, labels)
            norms = torch.autograd.grad(loss, list(self.parameters()), retain_graph=True)
            self.manual_backward(loss / max(1.0, float(norms[0].norm())), retain_graph=True)
            torch.autograd.grad(loss, list(self.parameters()))

    quiet_trainer(PSPCallback(lam=LAM)).fit(Weighed(), loader(1))


def test_a_second_derivative_is_refused_with_the_remedy():
    class CreateGraph(Manual):
        def run_backward(self, logits, labels):
            self.manual_backward(functional.cross_entropy(logits, labels), create_graph=True)

    with (
        pytest.raises(NotImplementedError, match="record_potentials"),
        pytest.warns(UserWarning, match="create_graph"),
    ):
        quiet_trainer(PSPCallback(lam=LAM)).fit(CreateGraph(), loader(1))


def test_lbfgs_starts_every_closure_clean():
    class Closures(Classifier):
        def __init__(self):
            super().__init__()
            self.expected = []

        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)

        def on_after_backward(self):
            super().on_after_backward()
            self.expected.append(reference(self, functional.cross_entropy))

    module = Closures().double()
    trainer = quiet_trainer(PSPCallback(lam=LAM))
    trainer.fit(module, loader(1))
    assert len(module.gradients) > 2
    # of the last closure alone
    metrics = trainer.callback_metrics
    assert metrics["psp/penalty"].item() == pytest.approx(LAM * metrics["psp/z2"].item(), rel=1e-6)
    for found, expected in zip(module.gradients, module.expected, strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "squared_mean"])
def test_factors_of_single_layers(reduction):
    def term(z):
        return {"mean": z.square().mean() / 3, "sum": z.square().sum() / (2 * BATCH)}.get(
            reduction, z.mean(0).square().mean()
        )

    torch.manual_seed(0)
    module = Manual().double()
    factors = {"first": 0.0, "second": 2.0, "sec*": 1.5}
    quiet_trainer(PSPCallback(lam=LAM, layer_lam=factors, reduction=reduction)).fit(module, loader(1))
    features, labels = next(iter(loader(1)))
    second = module.second(functional.silu(module.first(features)))
    third = module.third(torch.relu(second))
    loss = functional.cross_entropy(third, labels) + LAM * (3.0 * term(second) + term(third))
    assert_close(module.gradients[0], torch.autograd.grad(loss, list(module.parameters())))


def test_a_backward_to_some_parameters_only():
    class Inputs(Manual):
        def run_backward(self, logits, labels):
            self.manual_backward(functional.cross_entropy(logits, labels), inputs=list(self.third.parameters()))

        def on_after_backward(self):
            self.gradients.append([parameter.grad.clone() for parameter in self.third.parameters()])

    torch.manual_seed(0)
    module = Inputs().double()
    trainer = quiet_trainer(PSPCallback(lam=LAM))
    trainer.fit(module, loader(1))
    assert_close(module.gradients[0], reference(module, functional.cross_entropy)[-2:])
    assert float(trainer.callback_metrics["psp/penalty"]) == pytest.approx(
        LAM * float(trainer.callback_metrics["psp/z2"]), rel=1e-6
    )


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("first", ["first", "third"])
def test_a_second_backward_to_other_parameters_is_refused(first, is_compiled):
    class Parts(Manual):
        def training_step(self, batch, batch_index):
            loss = functional.cross_entropy(self(batch[0]), batch[1])
            self.manual_backward(loss, retain_graph=True, inputs=list(getattr(self, first).parameters()))
            self.manual_backward(loss, inputs=list(self.second.parameters()))

        def on_after_backward(self):
            """Some gradients are missing."""

    module = Parts().double()
    if is_compiled:
        module.compile(backend="aot_eager")
    with pytest.raises(
        NotImplementedError, match=r"layer '(first|third)' would have no penalty.* in one backward pass"
    ):
        quiet_trainer(PSPCallback(lam=LAM)).fit(module, loader(1))


def test_two_backward_passes_of_a_modules_own_backward_are_refused():
    class Own(Manual):
        def training_step(self, batch, batch_index):
            self.manual_backward(functional.cross_entropy(self(batch[0]), batch[1]))

        def backward(self, loss):
            loss.backward(retain_graph=True, inputs=list(self.first.parameters()))
            loss.backward(inputs=list(self.second.parameters()))

    with pytest.raises(NotImplementedError, match=r"further backward pass would have no penalty .* `inputs`"):
        quiet_trainer(PSPCallback(lam=LAM)).fit(Own().double(), loader(1))


def test_backward_passes_to_some_parameters_each_of_its_own_call():
    class Calls(Manual):
        def training_step(self, batch, batch_index):
            for layer in (self.first, self.third):
                loss = functional.cross_entropy(self(batch[0]), batch[1])
                self.manual_backward(loss, inputs=list(layer.parameters()))
            found = [p.grad for layer in (self.first, self.third) for p in layer.parameters()]
            expected = reference(self, functional.cross_entropy)
            assert_close(found, [*expected[:2], *expected[-2:]])

        def on_after_backward(self):
            """Some gradients are missing."""

    torch.manual_seed(0)
    quiet_trainer(PSPCallback(lam=LAM)).fit(Calls().double(), loader(1))


class Failing(Manual):
    """Catches the failure of a backward pass, such as for want of memory, and takes another one."""

    def __init__(self, calls_anew):
        super().__init__()
        self.calls_anew = calls_anew

    def loss(self, batch):
        return functional.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch, batch_index):
        def fail(gradient):
            raise MemoryError

        loss = self.loss(batch)
        hook = self.second.weight.register_hook(fail)
        with suppress(MemoryError):
            self.manual_backward(loss, retain_graph=True)
        hook.remove()
        self.zero_grad()
        self.manual_backward(self.loss(batch) if self.calls_anew else loss)


def test_a_backward_after_one_that_failed():
    torch.manual_seed(0)
    module = Failing(calls_anew=True).double()
    trainer = quiet_trainer(PSPCallback(lam=LAM))
    trainer.fit(module, loader(1))
    assert_close(module.gradients[0], reference(module, functional.cross_entropy))
    logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
    assert logged["psp/penalty"] == pytest.approx(LAM * logged["psp/z2"], rel=1e-6)


def test_a_failed_backward_that_is_taken_again_is_refused():
    with pytest.raises(NotImplementedError, match=r"layer '.*' would have no .* ended with an error. Call the network"):
        quiet_trainer(PSPCallback(lam=LAM)).fit(Failing(calls_anew=False).double(), loader(1))


@pytest.mark.parametrize("function", [torch.relu, torch.sigmoid])
def test_a_layer_whose_mean_has_a_backward_pass_of_its_own_is_no_output(function):
    class Apart(Manual):
        def forward(self, x):
            hidden = function(self.first(x))
            return hidden.mean(), self.second(hidden).square().mean()  # neither is a prediction

        def training_step(self, batch, batch_index):
            activity, loss = self(batch[0])
            self.manual_backward(activity, retain_graph=True)
            self.manual_backward(loss)

        def on_after_backward(self):  # the third layer has no gradient
            pass

    trainer = quiet_trainer(PSPCallback(lam=LAM, output=False))
    with pytest.warns(UserWarning, match="No output layer was found"):
        trainer.fit(Apart().double(), loader(1))
    assert trainer.callback_metrics["psp_z2_train/first"] > 0
    assert trainer.callback_metrics["psp/penalty"] > 0
