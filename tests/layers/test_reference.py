"""The references against the networks themselves, without the package."""

import pytest
import torch

from tests.support.layers.case import expected
from tests.support.layers.table import BY_NAME, CASES
from tests.support.layers.watched import Training
from tests.support.reference import norm


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference_gives_the_loss_and_its_gradient(case):
    wanted = expected(case)
    network, batch = case.build()

    loss = Training(case, network).double().training_step(batch)

    torch.testing.assert_close(loss.detach(), wanted.loss, rtol=1e-12, atol=1e-13)
    loss.backward()
    for name, gradient in wanted.loss_gradients.items():
        p = network.get_parameter(name)
        found = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_penalty_matters_in_the_reference(case):
    for reduction in case.reductions:
        wanted = expected(case, reduction)
        assert 0 < wanted.penalty < 1e4
        lam = wanted.balanced_lam()
        gradients = wanted.gradients(lam)
        assert all(g.isfinite().all() for g in gradients.values())
        assert norm({name: g - wanted.loss_gradients[name] for name, g in gradients.items()}) > 1e-3 * norm(gradients)
        assert all(value > 1e-6 for value in wanted.mean_squares.values())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_potentials_depend_on_parameters_and_reach_the_loss(case):
    network, batch = case.build()
    loss, layers = case.reference(network, batch)
    for name, passes in layers.items():
        assert passes
        for z in (z for parts in passes for z in parts):
            assert z.requires_grad, name
    assert set(case.outputs) <= set(layers)
    assert loss.dim() == 0


@pytest.mark.parametrize("case", CASES, ids=str)
def test_names_are_of_modules_parameters_or_places_in_modules(case):
    network, batch = case.build()
    places = {path for path, _ in network.named_modules()}
    parameters = {name.removesuffix(".weight") for name, _ in network.named_parameters(remove_duplicate=False)}
    for name in case.reference(network, batch)[1]:
        if name.startswith("?"):
            continue
        path = name.split(":")[0]
        assert path in places | parameters or path.rpartition(".")[0] in places, name


def test_case_names_are_unique():
    assert len(BY_NAME) == len(CASES)
