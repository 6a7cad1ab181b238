"""Layers, their ⟨z²⟩ and the gradient of loss + λR by every way of using the package, against the references."""

import pytest

from lightning_psp import PSPCallback
from tests.support.layers.case import expected
from tests.support.layers.table import CASES
from tests.support.layers.watched import (
    PREFIX,
    assert_gradients,
    assert_layers,
    fit,
    gradients_by_module,
    gradients_by_network,
    gradients_in_lightning,
    logged_layers,
)

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
cases = pytest.mark.parametrize("case", CASES, ids=str)
RUNS = [(case, reduction) for case in CASES for reduction in case.reductions]


@cases
def test_layers_in_lightning(case):
    wanted = expected(case)
    _, trainer = fit(case, PSPCallback(lam=0.5))
    assert_layers(logged_layers(trainer), wanted.mean_squares, PREFIX, rel=1e-5)
    assert trainer.callback_metrics["psp/penalty"].item() == pytest.approx(0.5 * wanted.penalty.item(), rel=1e-5)


@pytest.mark.parametrize("gradients", [gradients_in_lightning, gradients_by_network, gradients_by_module])
@pytest.mark.parametrize(("case", "reduction"), RUNS, ids=[f"{case}-{reduction}" for case, reduction in RUNS])
def test_gradient(case, reduction, gradients):
    wanted = expected(case, reduction)
    lam = wanted.balanced_lam()
    assert_gradients(gradients(case, reduction, lam), wanted.gradients(lam))


@pytest.mark.parametrize("case", [case for case in CASES if case.validates], ids=str)
def test_layers_of_a_validation_run_are_those_of_training(case):
    wanted = expected(case).mean_squares
    _, trainer = fit(case, PSPCallback(lam=0.5, entropy=()), validates=True)
    found = logged_layers(trainer, "val")
    assert set(found) == set(logged_layers(trainer, "train"))
    assert len(found) == len(wanted)
    assert set(found) >= {PREFIX + name for name in wanted if not name.startswith("?")}
