"""The gradient with the penalty in Lightning against the explicit reference."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_psp import PSPCallback
from tests.support.cases import REDUCTIONS, Case, runs
from tests.support.cases.activations import ACTIVATION_CASES
from tests.support.cases.structures import HARD_CASES, STRUCTURE_CASES
from tests.support.cases.torchvision import TORCHVISION_CASES
from tests.support.gradients import ScaledLoss, assert_equal_gradients, assert_exact_or_refused, assert_matters
from tests.support.lightning_cases import fit
from tests.support.reference import norm, reference_step

CASES = ACTIVATION_CASES + STRUCTURE_CASES + TORCHVISION_CASES
BY_NAME = {case.name: case for case in STRUCTURE_CASES}


# a quick step has few logged values and needs no workers
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Of networks whose hidden layer has a softmax or a clamp.
    pytest.mark.filterwarnings("ignore:Of a network of several layers, only the output was found"),
]


def gradients_in_lightning(case: Case, reduction: str, lam: float) -> dict[str, Tensor]:
    network, (batch,) = case.build()
    module, _ = fit(network, case.loss, [batch], PSPCallback(lam=lam, reduction=reduction))
    (gradients,) = module.gradients
    return gradients


@runs(CASES)
def test_gradient_in_lightning(case, reduction):
    network, (batch,) = case.build()
    step = reference_step(network, case.loss, batch, reduction, case.output_layer)
    lam = step.balanced_lam()
    assert_matters(step, lam)

    gradients = gradients_in_lightning(case, reduction, lam)

    assert_equal_gradients(gradients, step.gradients(lam), 1e-8)


@pytest.mark.parametrize("case", STRUCTURE_CASES + TORCHVISION_CASES[:1], ids=str)
def test_logged_values(case):
    network, (batch,) = case.build()
    step = reference_step(network, case.loss, batch, output_layer=case.output_layer)

    _, trainer = fit(network, case.loss, [batch], PSPCallback(lam=0.5))

    logged = trainer.callback_metrics
    assert logged["psp/penalty"].item() == pytest.approx(0.5 * step.penalty.item(), rel=1e-5)
    layers = [k.removeprefix("psp_z2_train/") for k in logged if k.startswith("psp_z2_train/")]
    assert len(layers) == len(step.potentials)
    if case.names is not None:
        assert set(layers) == {f"network.{name}" for name in case.names}


@runs(HARD_CASES)
def test_exact_or_refused(case, reduction):
    assert_exact_or_refused(case, reduction, gradients_in_lightning)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nonlinearities_in_the_training_step(reduction):
    """The parts of a network called one by one in the step are the network."""

    def called_in_parts(network, batch):
        x, labels = batch
        x = F.relu(network.conv1(x), inplace=True)
        x = F.max_pool2d(x, 2)
        x = F.relu(network.conv2.forward(x))
        x = F.max_pool2d(x, 2).flatten(1)
        return F.cross_entropy(network.fc2(network.fc1(x).relu_()), labels)

    case = BY_NAME["LeNet-5"]
    network, (batch,) = case.build()
    step = reference_step(network, case.loss, batch, reduction)
    lam = step.balanced_lam()

    callback = PSPCallback(lam=lam, reduction=reduction)
    module, _ = fit(network, called_in_parts, [batch], callback)

    (gradients,) = module.gradients
    assert_equal_gradients(gradients, step.gradients(lam), 1e-8)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["LeNet-5", "residual sum, functional in place", "two batches"])
def test_accumulated_gradients(name, reduction):
    case = BY_NAME[name]
    network, batches = case.build(3)
    follower = copy.deepcopy(network)
    lam = reference_step(network, case.loss, batches[0], reduction).balanced_lam()

    module, _ = fit(
        network,
        case.loss,
        batches,
        PSPCallback(lam=lam, reduction=reduction),
        accumulate_grad_batches=2,
    )

    windows = [batches[:2], batches[2:]]
    assert len(module.gradients) == len(windows)
    for window, found in zip(windows, module.gradients, strict=True):
        parts = [reference_step(follower, case.loss, batch, reduction).gradients(lam) for batch in window]
        # Lightning divides the loss by 2 in the incomplete last window too
        expected = {name: sum(part[name] for part in parts) / 2 for name in parts[0]}
        assert_equal_gradients(found, expected, 1e-8)
        with torch.no_grad():
            for parameter_name, p in follower.named_parameters():
                p -= 0.1 * expected[parameter_name]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", ["LeNet-5", "residual sum, functional in place"])
def test_scaled_loss_in_float64(name, accumulate):
    case = BY_NAME[name]
    network, batches = case.build(accumulate)
    steps = [reference_step(network, case.loss, batch) for batch in batches]
    lam = steps[0].balanced_lam()

    module, _ = fit(
        network,
        case.loss,
        batches,
        PSPCallback(lam=lam),
        plugins=[ScaledLoss(autocast=False)],
        accumulate_grad_batches=accumulate,
    )

    (gradients,) = module.gradients
    parts = [step.gradients(lam) for step in steps]
    expected = {name: sum(part[name] for part in parts) / accumulate for name in parts[0]}
    assert_equal_gradients(gradients, expected, 1e-8)


@pytest.mark.parametrize("name", ["LeNet-5", "residual sum, functional in place"])
@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        (torch.bfloat16, {"precision": "bf16-mixed"}),
        (torch.float16, {"plugins": [ScaledLoss(autocast=True)]}),
    ],
    ids=["bf16", "fp16"],
)
def test_half_precision_comes_close(name, dtype, settings):
    case = BY_NAME[name]
    network, (batch,) = case.build()
    lam = reference_step(network, case.loss, batch).balanced_lam()
    network, batch = network.float(), (batch[0].float(), batch[1])
    with torch.autocast("cpu", dtype, cache_enabled=False):
        step = reference_step(network, case.loss, batch)
    assert_matters(step, lam)

    module, _ = fit(network, case.loss, [batch], PSPCallback(lam=lam), **settings)

    (gradients,) = module.gradients
    expected = step.gradients(lam)
    difference = {name: gradients[name] - g for name, g in expected.items()}
    assert norm(difference) <= 1e-2 * norm(expected)
