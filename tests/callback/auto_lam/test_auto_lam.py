"""λ found in training: the gradient of each step beside that of a plain loop that computes both gradients by hand."""

import copy

import pytest
import torch

from lightning_psp import PSPCallback
from lightning_psp.callback.auto_lam import AutoLam
from lightning_psp.schedules import Schedule
from tests.support import either_lightning
from tests.support.auto_lam import Lams, Rule
from tests.support.cases import runs
from tests.support.cases.structures import STRUCTURE_CASES
from tests.support.cases.torchvision import TORCHVISION_CASES
from tests.support.compiled import COMPILED, Model, assert_same, batches, network, train
from tests.support.gradients import ScaledLoss, assert_equal_gradients
from tests.support.lightning_cases import fit
from tests.support.reference import norm, reference_step

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


class Harmonic(Schedule):
    """1, 1/2, 1/3, … by optimiser step, and 0 in the eleventh, which measures."""

    def factor(self, progress):
        return 0.0 if progress.step == 10 else 1 / (1 + progress.step)


def penalty_of(layers, reduction, factors):
    terms = {
        "mean": [z.square().mean() / len(layers) for z in layers],
        "sum": [z.square().sum() / 2 / len(z) for z in layers],
        "squared_mean": [z.mean(0).square().mean() for z in layers],
    }[reduction]
    return sum(factor * term for factor, term in zip(factors, terms, strict=True))


@pytest.mark.parametrize("package", either_lightning.NAMES)
@pytest.mark.parametrize(
    ("settings", "arguments"),
    [
        ({}, {}),
        ({"accumulate_grad_batches": 3}, {"reduction": "sum", "schedule": Harmonic()}),
        ({"accumulate_grad_batches": 2, "max_epochs": 5}, {"layer_lam": {"second": 4.0, "first": 0.5}}),
        ({}, {"reduction": "squared_mean", "schedule": Harmonic(), "layer_lam": {"first": 0.0}}),
    ],
)
def test_a_training_of_25_steps_equals_a_plain_loop(package, settings, arguments):
    pytest.importorskip(package.partition(".")[0])
    torch.manual_seed(0)
    module = either_lightning.classifier_of(package)().double()
    follower = copy.deepcopy(module)
    accumulated, epochs = settings.get("accumulate_grad_batches", 1), settings.get("max_epochs", 1)
    data = either_lightning.loader(25 * accumulated // epochs)
    found = Lams()
    either_lightning.quiet_trainer(package, PSPCallback(lam="auto", **arguments), found, **settings).fit(module, data)

    parameters, rule, number = list(follower.parameters()), Rule(), 0
    schedule, reduction = arguments.get("schedule"), arguments.get("reduction", "mean")
    factors = [arguments.get("layer_lam", {}).get(layer, 1.0) for layer in either_lightning.LAYERS]
    everything = [batch for _ in range(epochs) for batch in data]
    for step in range(25):
        window = everything[step * accumulated : (step + 1) * accumulated]
        gradients = [torch.zeros_like(parameter) for parameter in parameters]
        for place, (features, labels) in enumerate(window):
            layers = either_lightning.potentials(follower, features)
            loss = -layers[-1].log_softmax(1)[torch.arange(len(labels)), labels].mean()
            penalty = penalty_of(layers, reduction, factors)
            of_loss, of_penalty = (
                torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True, allow_unused=True)
                for value in (loss, penalty)
            )
            if place == 0:
                full = rule.lam(step, of_loss, of_penalty)
            factor = 1.0 if schedule is None else 0.0 if step == 10 else 1 / (1 + step)
            lam = full * factor
            assert found.values[number] == pytest.approx(lam, rel=1e-10)
            for gradient, a, b in zip(gradients, of_loss, of_penalty, strict=True):
                gradient += (a + lam * b) / accumulated
            number += 1
            if len(window) == place + 1:
                torch.testing.assert_close(module.gradients[number - 1], gradients, rtol=1e-8, atol=1e-12)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 0.1 * gradient
    assert len(found.values) == number == len(module.gradients)
    assert len(set(rule.loss)) == 3


# --- other networks ---------------------------------------------------------------------------------------------------

BY_NAME = {case.name: case for case in STRUCTURE_CASES}


def assert_measured(trainer, lam, tolerance=1e-8):
    assert trainer.callback_metrics["psp/lam"].item() == pytest.approx(lam, rel=tolerance)


@runs(STRUCTURE_CASES + TORCHVISION_CASES[:2])
def test_the_first_step_of_other_networks(case, reduction):
    network, (batch,) = case.build()
    step = reference_step(network, case.loss, batch, reduction, case.output_layer)
    lam = 0.3 * step.balanced_lam()
    module, trainer = fit(network, case.loss, [batch], PSPCallback(lam="auto", reduction=reduction))
    assert_measured(trainer, lam)
    assert_equal_gradients(module.gradients[0], step.gradients(lam), 1e-8)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", ["LeNet-5", "residual sum, functional in place"])
def test_a_scaled_loss(name, accumulate):
    case = BY_NAME[name]
    network, batches = case.build(accumulate)
    steps = [reference_step(network, case.loss, batch) for batch in batches]
    lam = 0.3 * steps[0].balanced_lam()
    settings = {"plugins": [ScaledLoss(autocast=False)], "accumulate_grad_batches": accumulate}
    module, trainer = fit(network, case.loss, batches, PSPCallback(lam="auto"), **settings)
    assert_measured(trainer, lam)
    parts = [step.gradients(lam) for step in steps]
    expected = {name: sum(part[name] for part in parts) / accumulate for name in parts[0]}
    assert_equal_gradients(module.gradients[0], expected, 1e-8)


@pytest.mark.parametrize(
    ("dtype", "settings"),
    [(torch.bfloat16, {"precision": "bf16-mixed"}), (torch.float16, {"plugins": [ScaledLoss(autocast=True)]})],
    ids=["bf16", "fp16"],
)
def test_half_precision_comes_close(dtype, settings):
    case = BY_NAME["LeNet-5"]
    network, (batch,) = case.build()
    network, batch = network.float(), (batch[0].float(), batch[1])
    with torch.autocast("cpu", dtype, cache_enabled=False):
        step = reference_step(network, case.loss, batch)
    lam = 0.3 * step.balanced_lam()
    module, trainer = fit(network, case.loss, [batch], PSPCallback(lam="auto"), **settings)
    assert_measured(trainer, lam, 1e-2)
    expected = step.gradients(lam)
    difference = {name: module.gradients[0][name] - gradient for name, gradient in expected.items()}
    assert norm(difference) <= 1e-2 * norm(expected)


# --- compiled networks ------------------------------------------------------------------------------------------------


class TestCompiled:
    pytestmark = COMPILED

    @pytest.mark.parametrize("reduction", ["mean", "squared_mean"])
    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_as_without_compilation(self, backend, reduction):
        trained = []
        for compiles in (False, True):
            torch.manual_seed(0)
            module = Model().double()
            if compiles:
                network(module, backend=backend)
            callback = PSPCallback(lam="auto", reduction=reduction, schedule=Harmonic())
            trained.append(train(module, callback, batches(12)))
        assert trained[1].graphs == 1
        assert_same(*reversed(trained))

    @pytest.mark.parametrize("callback", [None, PSPCallback(lam=0.3)])
    def test_one_that_was_trained_before(self, callback):
        trained = []
        for compiles in (False, True):
            torch.manual_seed(0)
            module = Model().double()
            if compiles:
                network(module, backend="inductor")
            train(module, callback, batches(2))
            trained.append(train(module, PSPCallback(lam="auto"), batches(12)))
        assert_same(*reversed(trained))

    def test_shapes_that_are_compiled_in_a_step_without_a_measurement(self):
        """The last batch of an epoch of four is smaller; the measured one behind it is that, too."""
        data, trained = batches(3, last=2), []
        for compiles in (False, True):
            torch.manual_seed(0)
            module = Model().double()
            if compiles:
                network(module, dynamic=False)
            trained.append(train(module, PSPCallback(lam="auto"), data, max_epochs=7))
        assert trained[1].graphs == 2
        assert_same(*reversed(trained))

    def test_a_function_compiled_for_one_backward_pass_is_refused(self, monkeypatch):
        module = Model().double()
        network(module)
        with monkeypatch.context() as patched:
            patched.setattr("lightning_psp.torch_private.compiler._functorch_config", None)
            patched.setattr(AutoLam, "is_due", lambda auto, step: step == 1)
            with pytest.raises(RuntimeError, match=r"(?s)lam='auto'.*torch.compiler.reset.*with a number for `lam`"):
                train(module, PSPCallback(lam="auto"))
