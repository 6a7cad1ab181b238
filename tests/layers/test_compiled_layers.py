"""The same layers and gradients where the network, or the whole step, is compiled."""

import pytest

from lightning_psp import PSPCallback
from tests.compiled import COMPILED, graphs, network_by_method, step
from tests.layers.case import expected
from tests.layers.table import CASES
from tests.layers.watched import PREFIX, assert_gradients, assert_layers, fit, logged_layers

pytestmark = COMPILED
QUICK = {
    "hidden states beside the prediction",
    "Normal in the step, chunks",
    "each class",
    "activation function, GELU",
    "activation module, QuickGELU",
    "block in depth",
    "stacked experts",
    "both halves",
    "handed on by F.max_pool2d, keywords",
    "residual sums in a loop, function",
    "returned part, chunk",
    "returned part, multiple",
    "losses inside, smooth L1",
    "coupling flow",
}
NOT_AS_EAGER = {
    "policy with a scale of its own": "the expanded parameter is taken for an output",
    "policy with a scale of its own, expanded": "the expanded parameter is taken for an output",
    "policy with a scale of its own, logarithm": "the expanded parameter is taken for an output",
    "returned mixture of probabilities": "fails while it is compiled",
}


def marks(case):
    found = [] if case.name in QUICK else [pytest.mark.slow]
    return [*found, pytest.mark.xfail(reason=NOT_AS_EAGER[case.name])] if case.name in NOT_AS_EAGER else found


cases = pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=marks(case), id=case.name) for case in CASES],
)


@cases
def test_compiled_network(case):
    check(case, network_by_method)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_compiled_step(case):
    before = graphs()
    check(case, step)
    assert graphs() > before


def check(case, compile_part):
    wanted = expected(case)
    lam = wanted.balanced_lam()
    module, trainer = fit(case, PSPCallback(lam=lam), prepare=compile_part)
    (gradients,) = module.gradients
    assert_gradients(gradients, wanted.gradients(lam))
    assert_layers(logged_layers(trainer), wanted.mean_squares, PREFIX, rel=1e-5)
