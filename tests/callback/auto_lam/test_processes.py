"""λ that two processes find together is that of one process on the whole batch."""

import pytest
import torch

from tests.support.auto_lam import Rule
from tests.support.followed import assert_same, potentials
from tests.support.processes import PROCESSES, results_of
from tests.support.processes.auto_lam_worker import REFUSED, RUNS, STEPS
from tests.support.processes.training_worker import parts
from tests.support.small import Classifier

pytestmark = pytest.mark.first


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each process kept of each run, by name of the run."""
    return results_of("auto_lam_worker", RUNS, tmp_path_factory.mktemp("processes"))


TERMS = {
    "mean": lambda layers: sum(z.square().mean() for z in layers) / len(layers),
    "sum": lambda layers: sum(z.square().sum() / 2 / len(z) for z in layers),
    "squared_mean": lambda layers: sum(z.mean(0).square().mean() for z in layers),
}


def losses(name, number, shares, module, reduction):
    """Loss and R of the whole batch."""
    layers = potentials(module, torch.cat([features for features, _ in shares]))
    labels = torch.cat([labels for _, labels in shares])
    loss = -layers[-1].log_softmax(1)[torch.arange(len(labels)), labels].mean()
    penalty = TERMS[reduction](layers)
    if name == "resting first" and number == 0:  # the second process adds nothing to the means over both
        layers = potentials(module, shares[0][0])
        loss = -layers[-1].log_softmax(1)[torch.arange(len(shares[0][1])), shares[0][1]].mean() / PROCESSES
        penalty = TERMS[reduction](layers) / PROCESSES
    return loss, penalty


@pytest.mark.parametrize("name", [name for name in RUNS if name not in REFUSED])
def test_as_one_process(results, name):
    mine, other = results[name]
    for result in (mine, other):
        assert "error" not in result, result["error"]
    seen = slice(1 if name == "resting first" else 0, None)
    assert mine["lams"][seen] == other["lams"][seen]
    assert_same(mine["final"].values(), other["final"].values(), rtol=0.0, atol=0.0)
    window, reduction = RUNS[name][2].get("accumulate_grad_batches", 1), RUNS[name][3].get("reduction", "mean")
    assert len(mine["gradients"]) == STEPS == len(mine["lams"]) // window
    rule = Rule()
    module = Classifier().double()
    weights = list(module.state_dict())
    data = list(zip(*(parts(rank, STEPS * window) for rank in range(PROCESSES)), strict=True))
    for step in range(STEPS):
        module.load_state_dict({each: mine["weights"][step][each] for each in weights})
        parameters = list(module.parameters())
        expected = [torch.zeros_like(parameter) for parameter in parameters]
        for place in range(window):
            number = step * window + place
            of_loss, of_penalty = (
                torch.autograd.grad(value, parameters, retain_graph=True)
                for value in losses(name, number, data[number], module, reduction)
            )
            if name == "infinite" and step == 0:
                assert mine["lams"][0] == 0.0
                break
            if place == 0:
                lam = rule.lam(0 if name == "infinite" and step == 1 else step, of_loss, of_penalty)
            assert mine["lams"][number] == pytest.approx(lam, rel=1e-9)
            for gradient, a, b in zip(expected, of_loss, of_penalty, strict=True):
                gradient += (a + lam * b) / window
        else:
            assert_same(mine["gradients"][step][: len(parameters)], expected)
    assert mine["means"] == pytest.approx((rule.mean(rule.loss), rule.mean(rule.penalty)), rel=1e-9)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_measured_is_refused(results, name):
    for result in results[name]:
        assert "NotImplementedError: PSPCallback(lam='auto')" in result["error"]
        assert "find_lam" in result["error"]
