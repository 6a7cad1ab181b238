"""Names of parameters, which are kept from step to step and hold as long as the parameters are where they were."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from lightning_psp import record_potentials
from lightning_psp.capture.frames import Frames


def test_a_parameter_that_got_another_name_has_that_one() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    frames = Frames(network, ())
    first, second = network[0].weight, network[1].weight
    assert (frames.name_of_parameter(first), frames.name_of_parameter(second)) == ("0.weight", "1.weight")
    network[0].weight, network[1].weight = second, first
    frames.start()
    assert (frames.name_of_parameter(first), frames.name_of_parameter(second)) == ("1.weight", "0.weight")


def test_a_parameter_that_left_has_no_name_and_its_successor_has_it() -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    frames = Frames(network, ())
    former = network[0].weight
    assert frames.name_of_parameter(former) == "0.weight"
    network[0].weight = nn.Parameter(torch.ones(2, 2))
    frames.start()
    assert frames.name_of_parameter(former) is None
    assert frames.name_of_parameter(network[0].weight) == "0.weight"


def test_a_module_whose_parameters_are_those_of_a_part() -> None:
    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy, self.reference = nn.Linear(2, 2), nn.Linear(2, 2)

        def parameters(self) -> Iterator[nn.Parameter]:  # type: ignore[override]
            return self.policy.parameters()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.policy(x)) - torch.relu(self.reference(x))

    network = Policy()
    with record_potentials(network) as potentials:
        network(torch.randn(3, 2)).sum()
    assert list(potentials)[:2] == ["policy", "reference"]
