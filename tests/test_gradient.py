"""The gradient with the penalty, inside Lightning and outside, against the explicit reference."""

import copy
from contextlib import nullcontext

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from lightning_psp import PSPCallback, psp_penalty, record_potentials
from tests.cases import Case
from tests.cases_activations import ACTIVATION_CASES
from tests.cases_structures import STRUCTURE_CASES
from tests.cases_torchvision import TORCHVISION_CASES
from tests.lightning_cases import fit
from tests.reference import norm, reference_step

REDUCTIONS = ("mean", "sum", "squared_mean")
ALL_REDUCTIONS_OF = {"resnet18", "mobilenet_v2", "vit_small"}
RUNS = [
    *((case, "mean") for case in ACTIVATION_CASES + TORCHVISION_CASES),
    *((case, reduction) for case in STRUCTURE_CASES for reduction in REDUCTIONS),
    *(
        (case, reduction)
        for case in TORCHVISION_CASES
        if case.name in ALL_REDUCTIONS_OF
        for reduction in ("sum", "squared_mean")
    ),
]
IDS = [f"{case}-{reduction}" for case, reduction in RUNS]
BY_NAME = {case.name: case for case in STRUCTURE_CASES}

# a quick step has few logged values and needs no workers
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


def built(case: Case, batches: int = 1):
    if case.needs_torchvision:
        pytest.importorskip("torchvision")
    return case.build(batches)


def assert_equal_gradients(found, expected, tolerance: float) -> None:
    length = norm(expected)
    difference = {name: found[name].double() - g for name, g in expected.items()}
    assert norm(difference) <= tolerance * length
    for name, g in expected.items():
        # a bias before a batch norm has a gradient of nothing but rounding
        scale = max(g.norm().item(), 1e-4 * length.item())
        assert difference[name].norm() <= tolerance * scale, name


def assert_matters(step, lam: float) -> None:
    """Without the penalty the test would fail."""
    gradients = step.gradients(lam)
    missing = {name: g - step.loss_gradients[name] for name, g in gradients.items()}
    assert norm(missing) > 1e-3 * norm(gradients)


@pytest.mark.parametrize(("case", "reduction"), RUNS, ids=IDS)
def test_gradient_in_lightning(case, reduction):
    network, (batch,) = built(case)
    step = reference_step(network, case.loss, batch, reduction, case.output_layer)
    lam = step.balanced_lam()
    assert_matters(step, lam)

    module, _ = fit(network, case.loss, [batch], PSPCallback(lam=lam, reduction=reduction))

    (gradients,) = module.gradients
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


@pytest.mark.parametrize("case", ACTIVATION_CASES + STRUCTURE_CASES + TORCHVISION_CASES, ids=str)
def test_recorded_potentials(case):
    network, (batch,) = built(case)
    expected = reference_step(network, case.loss, batch, output_layer=case.output_layer).potentials

    with record_potentials(network) as potentials:
        case.loss(network, batch)

    assert len(potentials) == len(expected)
    for z, wanted in zip(potentials.values(), expected, strict=True):
        torch.testing.assert_close(z, wanted, rtol=1e-12, atol=1e-14)
    if case.names is not None:
        assert tuple(potentials) == case.names


@pytest.mark.parametrize(
    ("case", "reduction"),
    [run for run in RUNS if not run[0].partly_live],
    ids=[i for i, (case, _) in zip(IDS, RUNS, strict=True) if not case.partly_live],
)
def test_gradient_outside_lightning(case, reduction):
    network, (batch,) = built(case)
    step = reference_step(network, case.loss, batch, reduction, case.output_layer)
    lam = step.balanced_lam()

    with record_potentials(network) as potentials:
        loss = case.loss(network, batch)
    (loss + lam * psp_penalty(potentials, reduction)).backward()

    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in network.named_parameters()
        if p.requires_grad
    }
    assert_equal_gradients(gradients, step.gradients(lam), 1e-10)


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
        parts = [
            reference_step(follower, case.loss, batch, reduction).gradients(lam) for batch in window
        ]
        # Lightning divides the loss by 2 in the incomplete last window too
        expected = {name: sum(part[name] for part in parts) / 2 for name in parts[0]}
        assert_equal_gradients(found, expected, 1e-8)
        with torch.no_grad():
            for parameter_name, p in follower.named_parameters():
                p -= 0.1 * expected[parameter_name]


class ScaledLoss(MixedPrecision):
    """The scaled loss of fp16 training without its rounding, so that errors show."""

    def __init__(self, autocast: bool) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
        super().__init__("16-mixed", "cpu", scaler=scaler)
        self.autocast = autocast

    def forward_context(self):
        return super().forward_context() if self.autocast else nullcontext()


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
    ("settings", "tolerance"),
    [({"precision": "bf16-mixed"}, 2e-2), ({"plugins": [ScaledLoss(autocast=True)]}, 1e-2)],
    ids=["bf16", "fp16"],
)
def test_half_precision_comes_close(name, settings, tolerance):
    case = BY_NAME[name]
    network, (batch,) = built(case)
    step = reference_step(network, case.loss, batch)
    lam = step.balanced_lam()
    batch = (batch[0].float(), batch[1])

    module, _ = fit(network.float(), case.loss, [batch], PSPCallback(lam=lam), **settings)

    (gradients,) = module.gradients
    expected = step.gradients(lam)
    difference = {name: gradients[name].double() - g for name, g in expected.items()}
    assert norm(difference) <= tolerance * norm(expected)
    assert_matters(step, lam)
