"""Logits that a step joins, of which no gradient flows through some, or some are overwritten afterwards."""

import pytest
import torch
from torch.nn import functional

from lightning_psp import PSPCallback, record_potentials
from tests.support.layers.case import LayerCase, cross_entropy
from tests.support.layers.cases_joined import labelled_twice
from tests.support.layers.cases_logits import mlp, mlp_potentials
from tests.support.layers.watched import fit

LAM = 0.5


def step(network, batch):
    found = torch.cat([network(batch[0]), network(batch[1]).detach()])
    return functional.cross_entropy(found, batch[2])


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
def test_a_pass_that_is_detached():
    case = LayerCase("joined", mlp, labelled_twice, step, lambda network, batch: None, alone=None)
    module, _ = fit(case, PSPCallback(lam=LAM))
    (found,) = module.gradients
    network, batch = case.build()
    (first, left), (_, right) = (mlp_potentials(network, x) for x in batch[:2])
    penalty = ((first**2).mean() + (left**2).mean()) / 2
    (cross_entropy(torch.cat([left, right.detach()]), batch[2]) + LAM * penalty).backward()
    for name, parameter in network.named_parameters():
        assert torch.allclose(found[name], parameter.grad, rtol=1e-9, atol=1e-12), name


def test_a_pass_that_is_overwritten_when_it_has_been_joined():
    network, batch = LayerCase("joined", mlp, labelled_twice, step, lambda network, batch: None).build()
    with record_potentials(network) as potentials:
        left, right = network(batch[0]), network(batch[1])
        joined = torch.cat([left, right])
        left.mul_(2.0)
        loss = functional.cross_entropy(joined, batch[2])
    assert loss.isfinite()
    (output,) = potentials.outputs
    assert torch.equal(potentials[output], joined)
