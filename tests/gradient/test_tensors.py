"""Potentials of every type, layout and value: what is penalised, what is left out, and what is said about it."""

import math

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn import functional

from lightning_psp import PSPCallback, record_potentials
from tests.support.followed import LAM, Followed, assert_same, mean_square, potentials, total
from tests.support.small import BATCH, Classifier, loader, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


def fit(module, *, lam=LAM, batches=1, **settings):
    trainer = quiet_trainer(PSPCallback(lam=lam), **settings)
    trainer.fit(module, loader(batches))
    return trainer


def seeded(kind=Followed):
    torch.manual_seed(0)
    return kind().double()


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_values_that_are_no_numbers_are_reported_and_passed_on(value):
    class Broken(Followed):
        """One sample of one unit of the second layer."""

        def forward(self, features):
            z = self.second(functional.silu(self.first(features)))
            mask = torch.zeros_like(z)
            mask[1, 2] = value
            return self.third(torch.tanh(z + mask))

        def on_after_backward(self):
            Classifier.on_after_backward(self)
            with torch.enable_grad():
                first = self.first(self.batch[0])
                second = self.second(functional.silu(first))  # with x·σ(x), infinities would cancel on the way back
                mask = torch.zeros_like(second)
                mask[1, 2] = value
                second = second + mask
                third = self.third(second.tanh())
                loss = functional.cross_entropy(third, self.batch[1])
                loss = loss + LAM * sum(mean_square(z) for z in (first, second, third)) / 3
                self.expected.append(torch.autograd.grad(loss, list(self.parameters())))

    module = seeded(Broken)
    with pytest.warns(UserWarning, match="layer 'tanh' hold NaN or infinity"):
        trainer = fit(module)
    ((found,), (expected,)) = module.gradients, module.expected
    assert not all(gradient.isfinite().all() for gradient in expected)
    assert_same(found, expected, equal_nan=True)
    assert not trainer.callback_metrics["psp/z2"].isfinite()


class Large(Classifier):
    """Its first layer's potentials are 300: their squares are beyond float16."""

    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.first.weight)
        nn.init.constant_(self.first.bias, 300.0)

    def training_step(self, batch, batch_index):
        return self(batch[0]).float().square().mean() * 1e-3

    def on_after_backward(self):
        self.gradients.append([self.first.bias.grad.clone()])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_squares_beyond_half_precision(dtype):
    torch.manual_seed(0)
    precision = {torch.float16: "16-true", torch.bfloat16: "bf16-true"}[dtype]
    module, trainer = Large(), None
    reference = Large().to(dtype)
    reference.load_state_dict(module.state_dict())
    trainer = fit(module, precision=precision)
    assert module.gradients[0][0].dtype == dtype
    assert trainer.callback_metrics["psp_z2_train/first"].item() == pytest.approx(300.0**2, rel=1e-5)
    assert trainer.callback_metrics["psp/penalty"].isfinite()

    with record_potentials(reference) as recorded:
        reference(next(iter(loader(1)))[0].to(dtype))
    loss = recorded["third"].float().square().mean() * 1e-3
    loss = loss + LAM * sum(z.float().square().mean() for z in recorded.values()) / 3
    (expected,) = torch.autograd.grad(loss, [reference.first.bias])
    tolerance = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(module.gradients[0][0], expected, rtol=4 * tolerance, atol=0.0)


class LossScaling(MixedPrecision):
    """The scaled loss of fp16 training without its rounding, so that errors show."""

    def __init__(self, init_scale=2.0**16):
        super().__init__("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=init_scale))

    def forward_context(self):
        return torch.autocast("cpu", enabled=False)


class Overflowing(Followed):
    """The gradient of the first backward pass overflows."""

    def __init__(self):
        super().__init__()
        self.scales, self.weights = [], []
        self.third.bias.register_hook(lambda gradient: gradient / (len(self.scales) != 1))

    def on_after_backward(self):
        """The gradient is still scaled."""

    def on_before_backward(self, loss):
        self.scales.append(self.trainer.precision_plugin.scaler.get_scale())
        self.weights.append(self.third.weight.detach().clone())

    def on_before_optimizer_step(self, optimizer):
        Followed.on_after_backward(self)


@pytest.mark.parametrize("as_on_an_accelerator", [False, True])
def test_the_step_after_one_that_loss_scaling_skipped(as_on_an_accelerator, monkeypatch):
    """On an accelerator the scale is not read in the later steps."""
    if as_on_an_accelerator:
        monkeypatch.setattr(torch.Tensor, "is_cpu", False, raising=False)
    module = seeded(Overflowing)
    trainer = quiet_trainer(PSPCallback(lam=LAM), plugins=[LossScaling()], precision=None)
    trainer.fit(module, loader(3))
    assert module.scales == [2.0**16, 2.0**15, 2.0**15]
    assert torch.equal(module.weights[0], module.weights[1])  # the first step was skipped
    assert not torch.equal(module.weights[1], module.weights[2])
    assert len(module.gradients) == 3
    for found, expected in list(zip(module.gradients, module.expected, strict=True))[1:]:
        assert_same(found, expected)


@pytest.mark.filterwarnings("ignore:PSPCallback")
@pytest.mark.parametrize("lam", [LAM, "auto"])
def test_a_loss_that_is_never_finite(lam):
    """Every step is skipped, and each halves the scale, in the end to 0; the training goes on as without."""

    class Infinite(Followed):
        def training_step(self, batch, batch_index):
            return super().training_step(batch, batch_index) * math.inf

    module = seeded(Infinite)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    trainer = quiet_trainer(PSPCallback(lam=lam), plugins=[LossScaling(2.0**-148)], precision=None)
    trainer.fit(module, loader(4))
    assert trainer.precision_plugin.scaler.get_scale() == 0
    assert all(map(torch.equal, module.parameters(), before))


# --- no values -------------------------------------------------------------------------------------------------------


class SometimesEmpty(Followed):
    """A step without samples among others."""

    def training_step(self, batch, batch_index):
        features, labels = batch
        self.batch = batch if batch_index != 1 else (features[:0], labels[:0])
        return functional.cross_entropy(self(self.batch[0]), self.batch[1], reduction="sum") / BATCH

    def on_after_backward(self):
        """Gradients of a window add up."""

    def on_before_optimizer_step(self, optimizer):
        Classifier.on_after_backward(self)

    def validation_step(self, batch, batch_index):
        self(batch[0][: BATCH * (batch_index != 1)])


@pytest.mark.parametrize("accumulate", [1, 3])
def test_an_empty_batch_among_others(accumulate):
    module = seeded(SometimesEmpty)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    callback = PSPCallback(lam=LAM)
    trainer = quiet_trainer(callback, accumulate_grad_batches=accumulate)
    trainer.fit(module, loader(3), loader(3))
    reference = Followed().double()
    with torch.no_grad():
        for parameter, value in zip(reference.parameters(), before, strict=True):
            parameter.copy_(value)
    expected, window = [], [torch.zeros_like(p) for p in reference.parameters()]
    for index, batch in enumerate(loader(3)):
        if index != 1:
            gradient = torch.autograd.grad(total(reference, batch) / accumulate, list(reference.parameters()))
            window = [a + g for a, g in zip(window, gradient, strict=True)]
        if (index + 1) % accumulate == 0:
            expected.append(window)
            with torch.no_grad():
                for parameter, gradient in zip(reference.parameters(), window, strict=True):
                    parameter -= 0.1 * gradient
            window = [torch.zeros_like(p) for p in reference.parameters()]
    assert len(module.gradients) == len(expected) == 3 // accumulate
    for found, wanted in zip(module.gradients, expected, strict=True):
        assert_same(found, wanted)
    with torch.no_grad():
        batches = [potentials(module, batch[0]) for index, batch in enumerate(loader(3)) if index != 1]
    mean = sum(mean_square(*passes) for passes in zip(*batches, strict=True)) / 3
    assert trainer.callback_metrics["psp/z2_val"].item() == pytest.approx(mean.item(), rel=1e-6)


# --- other types and layouts -----------------------------------------------------------------------------------------


def complex_part(module, x):
    return torch.tanh(torch.complex(module.second(x), x)).abs()


def integer_part(module, x):
    return module.second(x) * functional.relu(torch.arange(-3, 5))


def sparse_part(module, x):
    return functional.relu(module.second(x).to_sparse()).to_dense()


def compressed_part(module, x):
    return functional.relu(module.second(x).to_sparse_csr()).to_dense()


def nested_part(module, x):
    z = module.second(x)
    nested = torch.nested.nested_tensor_from_jagged(z, offsets=torch.tensor([0, 1, BATCH]))
    return functional.relu(nested).values()


PARTS = {
    "complex": complex_part,
    "integer": integer_part,
    "sparse": sparse_part,
    "sparse rows": compressed_part,
    "nested": nested_part,
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("kind", PARTS)
def test_other_types_and_layouts_are_left_out(kind):
    class Parts(Followed):
        def forward(self, features):
            return self.third(PARTS[kind](self, functional.silu(self.first(features))))

        def on_after_backward(self):
            Classifier.on_after_backward(self)
            with torch.enable_grad():
                first = self.first(self.batch[0])
                third = self.third(PARTS[kind](self, first * first.sigmoid()))
                loss = functional.cross_entropy(third, self.batch[1])
                loss = loss + LAM * (mean_square(first) + mean_square(third)) / 2
                self.expected.append(torch.autograd.grad(loss, list(self.parameters())))

    module = seeded(Parts)
    if kind == "integer":  # has no gradient
        trainer = fit(module)
    else:
        with pytest.warns(UserWarning, match=f"not penalised.*{'tanh' if kind == 'complex' else 'relu'}"):
            trainer = fit(module)
    module.check(steps=1)
    layers = {key for key in trainer.callback_metrics if key.startswith("psp_z2_train")}
    assert layers == {"psp_z2_train/first", "psp_z2_train/third"}
