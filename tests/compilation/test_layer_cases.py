"""The same layers and gradients where the network, or the whole step, is compiled."""

from contextlib import nullcontext

import pytest

from lightning_psp import PSPCallback, psp_penalty
from lightning_psp.compilation import description
from tests.support.compiled import COMPILED, graphs, network_by_method, step
from tests.support.layers.case import expected
from tests.support.layers.cases_written_losses import INSIDE
from tests.support.layers.table import CASES
from tests.support.layers.watched import (
    PREFIX,
    assert_gradients,
    assert_layers,
    fit,
    gradients_of,
    logged_layers,
    recorded,
    recorded_layers,
)

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
    "a loss written out inside, the prediction is returned as it is",
    "a loss written out inside, the prediction is returned flat",
    "coupling flow",
    "returned mixture of probabilities",
    "likelihood inside, masked, mean",
    "masked logits and loss inside, assignment to parts",
    "losses inside, two of one map",
    "a preference of the likelier, by a network that ends in them",
}
REFUSED = {"LSTM cell"}  # whose gates are inside one operation of the compiled network
# Of which a compiled network returns a mean or sum, and no logits.
WITHOUT_OUTPUT = {
    "likelihood inside, gathered, mean",
    "likelihood inside, indexed, mean",
    "likelihood inside, masked, mean",
    "likelihood inside, masked, of each sample",
    *(f"a loss written out inside, {name}" for name in INSIDE),
    "a preference, inside",
}

# What a compiled step may not overwrite once it turns out to be the output.
REFUSED_IN_STEPS = {"overwritten at the end, assignment to a part"}
# Which a compiled network overwrites before a loss outside of it takes them.
OVERWRITTEN = {"masked logits inside, assignment to parts"}
# Which one overwrites in part, where the part as it is then, or the part beside the whole, is the potential.
OVERWRITTEN_IN_PART = {
    "overwritten at the end, multiple of a part",
    *(
        f"a part put back at the end, {way}"
        for way in ("assignment to a slice", "assignment to entries", "assignment to a copy", "scatter_")
    ),
}


def cases(always_slow=False):
    """All cases, those that take long marked."""
    slow = [case for case in CASES if always_slow or case.name not in QUICK]
    return pytest.mark.parametrize(
        "case", [pytest.param(case, marks=[pytest.mark.slow] * (case in slow), id=case.name) for case in CASES]
    )


def outcome(case, of_infinity):
    """What becomes of a compiled network of a case: an error, a warning, or nothing but what is checked."""
    if case.name in REFUSED:
        return pytest.raises(Exception, match="cannot be looked into")
    if case.name in WITHOUT_OUTPUT:
        return pytest.raises(UserWarning, match="No output layer was found")
    if case.name in OVERWRITTEN_IN_PART:
        return pytest.raises(AssertionError)
    return of_infinity if case.name in OVERWRITTEN else nullcontext()


@cases()
def test_compiled_network(case):
    with outcome(case, pytest.raises(UserWarning, match="hold NaN or infinity")):
        check(case, network_by_method)


@cases(always_slow=True)
def test_compiled_step(case):
    before = graphs()
    if case.name in REFUSED | REFUSED_IN_STEPS:
        with pytest.raises(Exception, match=r"cannot be looked into|modified by an inplace operation"):
            check(case, step)
        return
    check(case, step)
    assert graphs() > before


@cases()
def test_recorded_compiled_network(case):
    wanted = expected(case)
    lam = wanted.balanced_lam()
    with outcome(case, pytest.raises(AssertionError)):
        network, loss, potentials = recorded(case, is_compiled=True)
        assert_layers(recorded_layers(potentials, wanted.mean_squares), wanted.mean_squares)
        (loss + lam * psp_penalty(potentials)).backward()
        assert_gradients(gradients_of(network), wanted.gradients(lam))


def test_a_part_that_is_overwritten_for_others_to_see_is_refused(monkeypatch):
    monkeypatch.setattr(description, "is_view", lambda tensor: True)
    (case,) = [case for case in CASES if case.name == "masked logits and loss inside, assignment to parts"]
    with pytest.raises(Exception, match=r"A part of layer '.*2' is overwritten inside a compiled function"):
        check(case, network_by_method)


def check(case, compile_part):
    wanted = expected(case)
    lam = wanted.balanced_lam()
    module, trainer = fit(case, PSPCallback(lam=lam), prepare=compile_part)
    (gradients,) = module.gradients
    assert_gradients(gradients, wanted.gradients(lam))
    assert_layers(logged_layers(trainer), wanted.mean_squares, PREFIX, rel=1e-5)
