"""The gradient with the penalty, inside Lightning and outside, against the explicit reference."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_psp import PSPCallback, psp_penalty, record_potentials
from tests.support.cases import REDUCTIONS, Case
from tests.support.cases.activations import ACTIVATION_CASES
from tests.support.cases.structures import HARD_CASES, STRUCTURE_CASES
from tests.support.cases.torchvision import TORCHVISION_CASES
from tests.support.gradients import ScaledLoss, assert_equal_gradients, assert_matters
from tests.support.lightning_cases import fit
from tests.support.reference import norm, reference_step

CASES = ACTIVATION_CASES + STRUCTURE_CASES + TORCHVISION_CASES
BY_NAME = {case.name: case for case in STRUCTURE_CASES}


def runs(cases: list[Case]) -> pytest.MarkDecorator:
    pairs = [(case, reduction) for case in cases for reduction in case.reductions]
    ids = [f"{case}-{reduction}" for case, reduction in pairs]
    return pytest.mark.parametrize(("case", "reduction"), pairs, ids=ids)


# a quick step has few logged values and needs no workers
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Of networks whose hidden layer has a softmax or a clamp.
    pytest.mark.filterwarnings("ignore:Of a network of several layers, only the output was found"),
]


def built(case: Case, batches: int = 1):
    if case.needs_torchvision:
        pytest.importorskip("torchvision")
    return case.build(batches)


def gradients_in_lightning(case: Case, reduction: str, lam: float) -> dict[str, Tensor]:
    network, (batch,) = case.build()
    module, _ = fit(network, case.loss, [batch], PSPCallback(lam=lam, reduction=reduction))
    (gradients,) = module.gradients
    return gradients


def gradients_outside_lightning(case: Case, reduction: str, lam: float) -> dict[str, Tensor]:
    network, (batch,) = case.build()
    with record_potentials(network) as potentials:
        loss = case.loss(network, batch)
    (loss + lam * psp_penalty(potentials, reduction)).backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in network.named_parameters()
        if p.requires_grad
    }


@runs(CASES)
def test_gradient_in_lightning(case, reduction):
    network, (batch,) = built(case)
    step = reference_step(network, case.loss, batch, reduction, case.output_layer)
    lam = step.balanced_lam()
    assert_matters(step, lam)

    gradients = gradients_in_lightning(case, reduction, lam)

    assert_equal_gradients(gradients, step.gradients(lam), 1e-8)


@pytest.mark.parametrize("case", STRUCTURE_CASES + TORCHVISION_CASES[:1], ids=str)
def test_logged_values(case):
    network, (batch,) = built(case)
    step = reference_step(network, case.loss, batch, output_layer=case.output_layer)

    _, trainer = fit(network, case.loss, [batch], PSPCallback(lam=0.5))

    logged = trainer.callback_metrics
    assert logged["psp/penalty"].item() == pytest.approx(0.5 * step.penalty.item(), rel=1e-5)
    layers = [k.removeprefix("psp_z2_train/") for k in logged if k.startswith("psp_z2_train/")]
    assert len(layers) == len(step.potentials)
    if case.names is not None:
        assert set(layers) == {f"network.{name}" for name in case.names}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_recorded_potentials(case):
    network, (batch,) = built(case)
    expected = reference_step(network, case.loss, batch, output_layer=case.output_layer).potentials

    with record_potentials(network) as potentials:
        case.loss(network, batch)

    assert len(potentials) == len(expected)
    for z, wanted in zip(potentials.values(), expected, strict=True):
        # A layer has the shape in which it was computed; the reference takes what the network returned.
        torch.testing.assert_close(z.reshape(wanted.shape), wanted, rtol=1e-12, atol=1e-14)
    if case.names is not None:
        assert tuple(potentials) == case.names


@runs([case for case in CASES if not case.partly_live])
def test_gradient_outside_lightning(case, reduction):
    network, (batch,) = built(case)
    step = reference_step(network, case.loss, batch, reduction, case.output_layer)
    lam = step.balanced_lam()

    gradients = gradients_outside_lightning(case, reduction, lam)

    assert_equal_gradients(gradients, step.gradients(lam), 1e-10)


@pytest.mark.parametrize("gradients", [gradients_in_lightning, gradients_outside_lightning])
@runs(HARD_CASES)
def test_exact_or_refused(case, reduction, gradients):
    network, (batch,) = built(case)
    step = reference_step(network, case.loss, batch, reduction, case.output_layer)
    lam = step.balanced_lam()

    try:
        found, refusal = gradients(case, reduction, lam), None
    except RuntimeError as error:
        found, refusal = None, str(error)

    if refusal is None:
        assert_equal_gradients(found, step.gradients(lam), 1e-8)
    else:
        assert case.refusal in refusal


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
    network, (batch,) = built(case)
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
    network, batches = built(case, batches=3)
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
    network, batches = built(case, batches=accumulate)
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
    network, (batch,) = built(case)
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
