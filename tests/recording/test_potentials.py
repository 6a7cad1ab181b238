"""What is told of recorded potentials besides their values."""

import torch
import torch.nn.functional as F
from torch import nn

from lightning_psp import record_potentials
from tests.support.networks import SharedWeights, TwoHeads


def test_passes_are_counted():
    network = SharedWeights()
    with record_potentials(network) as potentials:
        network(torch.randn(4, 6))
        network(torch.randn(2, 6))
    assert potentials.passes == {"shared": 6, "head": 2}
    assert {name: len(z) for name, z in potentials.items()} == {"shared": 3 * 4 + 3 * 2, "head": 4 + 2}


def test_outputs_are_named_with_and_without_gradient():
    network = TwoHeads()
    for grad in (True, False):
        with torch.set_grad_enabled(grad), record_potentials(network) as potentials:
            first, second = network(torch.randn(4, 6))
            assert potentials.outputs == {"head1", "head2"}
            loss = F.cross_entropy(first, torch.zeros(4, dtype=torch.int64)) + second.square().mean()
        assert loss.requires_grad == grad
        assert list(potentials) == ["fc", "head1", "head2"]
        assert potentials.outputs == {"head1", "head2"}


def test_a_loss_that_reaches_one_head_makes_that_the_output():
    network = TwoHeads()
    with record_potentials(network) as potentials:
        loss = F.cross_entropy(network(torch.randn(4, 6))[1], torch.zeros(4, dtype=torch.int64))
    assert loss.requires_grad
    assert potentials.outputs == {"head2"}


def test_passes_of_other_shapes_are_entries_of_their_own():
    network = nn.Sequential(nn.Conv1d(1, 2, 2), nn.ReLU())
    with record_potentials(network) as potentials:
        for length in (3, 4, 3):
            network(torch.randn(2, 1, length))
    assert potentials.passes == {"0": 2, "0:1": 1}
    assert potentials.outputs == set(potentials)
