"""Layers that are recorded around a network and its loss, or around the network alone, against the references."""

import pytest
import torch

from tests.support.layers.case import expected
from tests.support.layers.table import BY_NAME, CASES
from tests.support.layers.watched import PREFIX, assert_layers, recorded, recorded_alone, recorded_layers

cases = pytest.mark.parametrize("case", CASES, ids=str)


@cases
def test_layers_recorded_around_network_and_loss(case):
    wanted = expected(case).mean_squares
    assert_layers(recorded_layers(recorded(case)[2], wanted), wanted)


@cases
def test_layers_recorded_around_the_training_step(case):
    wanted = expected(case).mean_squares
    potentials = recorded(case, by_module=True)[2]
    assert_layers(recorded_layers(potentials, wanted, PREFIX), wanted, PREFIX)


@pytest.mark.parametrize("with_gradient", [True, False], ids=["with gradient", "without"])
@pytest.mark.parametrize("case", [case for case in CASES if case.alone is not None], ids=str)
def test_hidden_layers_of_the_network_alone(case, with_gradient):
    wanted = {name: value for name, value in expected(case).mean_squares.items() if name not in case.outputs}
    potentials = recorded_alone(case, with_gradient, output=False)
    assert_layers(recorded_layers(potentials, wanted), wanted)


# What is returned and is an output where no loss is seen
OUTPUTS_ALONE = {
    "prediction alone": {"head"},
    "hidden states beside the prediction": {"head"},
    "hidden states that the loss uses": {"head"},
    "attention maps": {"head"},
    "gate weights": {"head"},
    "scale made of data": {"head"},
    "mask": {"head"},
    "dataclass with an unset field": {"head"},
    "two heads": {"head", "second"},
    "head that the loss does not reach": {"head", "second"},
    "sigmoid at the end": {"head"},
    "softmax at the end": {"head"},
    "scale by softplus inside": {"head", "raw"},
    "scale by softplus inside, chunks": {"head"},
    "returned Normal": {"head", "raw"},
    "returned Normal, chunks": {"head"},
    "returned Categorical": {"head"},
    "each image inside": {"layers.2"},
    "start and end": {"head"},
    "hinge inside": {"head"},
    "siamese": {"tower.2"},
    "head of several levels": {"head.2"},
    "tied weight, function": {"embed"},
}


@pytest.mark.parametrize("name", OUTPUTS_ALONE)
def test_output_of_the_network_alone(name):
    case = BY_NAME[name]
    hidden = set(expected(case).mean_squares) - set(case.outputs)
    assert set(recorded_layers(recorded_alone(case, with_gradient=True), hidden)) == hidden | OUTPUTS_ALONE[name]


def test_passes_that_fit_are_one_entry():
    case = BY_NAME["block in depth"]
    network, _, potentials = recorded(case)
    layers = case.reference(network, case.build()[1])[1]
    assert list(potentials) == ["block", "head"]
    torch.testing.assert_close(potentials["block"], torch.cat([z for (z,) in layers["block"]]))


def test_passes_that_do_not_fit_are_entries_of_their_own():
    case = BY_NAME["head of several levels"]
    network, _, potentials = recorded(case)
    layers = case.reference(network, case.build()[1])[1]
    assert set(potentials) == {"stem", "head.0", "head.0:1", "head.2", "head.2:1"}
    for name in ("head.0", "head.2"):
        for entry, (z,) in zip((name, f"{name}:1"), layers[name], strict=True):
            torch.testing.assert_close(potentials[entry], z)
