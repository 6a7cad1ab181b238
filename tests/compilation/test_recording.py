"""`record_potentials` of compiled networks, against the same without compilation."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_psp import psp_penalty, record_potentials
from tests.support.compiled import BATCH, CLASSES, FEATURES, Network, graphs

pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


def recorded(network, inputs, labels, reduction):
    """The potentials of a step, their units, and the gradients of its loss with the penalty."""
    with record_potentials(network) as potentials:
        loss = functional.cross_entropy(network(inputs), labels)
    loss = loss + 0.3 * psp_penalty(potentials, reduction)
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    return {name: z.detach() for name, z in potentials.items()}, potentials.unit_dims, gradients


def wrapped(network):
    return torch.compile(network, backend="aot_eager")


def by_method(network):
    network.compile(backend="aot_eager")
    return network


def blocks(network):
    for block in network.blocks:
        block.compile(backend="aot_eager")
    return network


@pytest.mark.parametrize("way", [wrapped, by_method, blocks])
def test_a_plain_loop(way):
    torch.manual_seed(0)
    network = Network().double()
    other = way(copy.deepcopy(network))
    before = graphs()
    for step in range(4):
        batch = torch.randn(BATCH, FEATURES, dtype=torch.float64), torch.randint(CLASSES, (BATCH,))
        reduction = ("mean", "sum", "squared_mean")[step % 3]
        expected, found = (recorded(net, *batch, reduction) for net in (network, other))
        assert list(expected[0]) == list(found[0])
        assert expected[1] == found[1]
        for one, two in zip(expected[0].values(), found[0].values(), strict=True):
            torch.testing.assert_close(two, one)
        for one, two in zip(expected[2], found[2], strict=True):
            torch.testing.assert_close(two, one, rtol=1e-8, atol=1e-12)
    assert graphs() - before == 1


@pytest.mark.parametrize("part", [nn.Unflatten(1, (4, -1)), nn.Unflatten(dim=-1, unflattened_size=(2, 2, -1))])
def test_functions_that_compilers_do_not_follow(part):
    """In PyTorch 2.11 `Tensor.unflatten` ended the graph, and what was behind it was not compiled."""
    network = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), part, nn.Linear(2, 3), nn.Tanh())
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    inputs = torch.randn(BATCH, FEATURES)
    found = {}
    for net in (network, compiled):
        with record_potentials(net) as potentials:
            net(inputs)
        found[net] = potentials
    assert found[network].keys() == found[compiled].keys() == {"0", "3"}
    for one, two in zip(found[network].values(), found[compiled].values(), strict=True):
        torch.testing.assert_close(two, one)


def test_a_compiled_part_and_two_calls():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)))
    other = copy.deepcopy(network)
    other[2].compile(backend="aot_eager")
    inputs = torch.randn(BATCH, FEATURES)
    made = []
    for net in (network, other):
        with record_potentials(net) as potentials:
            net(inputs)
            net(inputs + 1.0)
        made.append(potentials)
    assert made[0].keys() == made[1].keys() == {"0", "2.0"}
    for layer, z in made[0].items():
        assert z.shape == (2 * BATCH, 4)
        torch.testing.assert_close(made[1][layer], z)
