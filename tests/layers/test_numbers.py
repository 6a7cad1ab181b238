"""What the number of layers does not depend on, and forms of one network that agree."""

import dataclasses

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_psp import PSPCallback, record_potentials
from tests.support.layers.case import LayerCase, expected
from tests.support.layers.cases_experts import OUTPUTS, OneProductSequences, Sequences
from tests.support.layers.cases_logits import CLASSES, FEATURES
from tests.support.layers.cases_passes import Evolved
from tests.support.layers.table import BY_NAME
from tests.support.layers.watched import (
    PREFIX,
    Training,
    assert_layers,
    fit,
    logged_layers,
    recorded,
    recorded_layers,
)
from tests.support.small import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
# Further batches: other numbers of samples, other lengths
OTHER_BATCHES = {
    "each image in the step": lambda: (torch.randn(7, 4, FEATURES), torch.randint(CLASSES, (7, 4))),
    "each image inside": lambda: (torch.randn(7, 4, FEATURES), torch.randint(CLASSES, (7, 4))),
    "chunks of logits": lambda: (torch.randn(2, 9, FEATURES), torch.randint(CLASSES, (2, 9))),
    "chunks of the head's input": lambda: (torch.randn(2, 9, FEATURES), torch.randint(CLASSES, (2, 9))),
    "cell over single sequences": lambda: (
        [torch.randn(length, FEATURES) for length in (2, 7)],
        torch.randn(2, OUTPUTS),
    ),
    "cell over batches of sequences": lambda: (
        [torch.randn(1, length, FEATURES) for length in (2, 7)],
        torch.randn(2, OUTPUTS),
    ),
    "LSTM cell": lambda: (torch.randn(2, 9, FEATURES), torch.randn(2, OUTPUTS)),
    "LSTM written out": lambda: (torch.randn(2, 9, FEATURES), torch.randn(2, OUTPUTS)),
    "LSTM written out, one product": lambda: (torch.randn(2, 9, FEATURES), torch.randn(2, OUTPUTS)),
}


def with_batch(name: str) -> LayerCase:
    return dataclasses.replace(BY_NAME[name], batch=OTHER_BATCHES[name])


@pytest.mark.parametrize("name", OTHER_BATCHES)
def test_layers_of_another_batch(name):
    case = with_batch(name)
    wanted = expected(case).mean_squares
    assert set(wanted) == set(expected(BY_NAME[name]).mean_squares)
    assert_layers(recorded_layers(recorded(case)[2], wanted), wanted)
    _, trainer = fit(case, PSPCallback(lam=0.5))
    assert_layers(logged_layers(trainer), wanted, PREFIX, rel=1e-5)


@pytest.mark.parametrize("name", OTHER_BATCHES)
def test_steps_of_different_lengths_in_one_training(name):
    network, first = BY_NAME[name].build()
    _, second = with_batch(name).build()
    module = Training(BY_NAME[name], network)
    trainer = quiet_trainer(PSPCallback(lam=0.5))
    trainer.fit(module, DataLoader([first, second, first], batch_size=None))
    assert len(logged_layers(trainer)) == len(expected(BY_NAME[name]).mean_squares)


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_steps_of_an_ode(steps):
    network = Evolved(steps).double()
    with record_potentials(network) as potentials:
        network(torch.randn(2, FEATURES, dtype=torch.float64))
    assert list(potentials) == ["slope.first", "head"]
    assert len(potentials["slope.first"]) == 2 * steps


def three_forms() -> dict[str, tuple[Sequences | OneProductSequences, str]]:
    """One recurrent network in all forms, with the same weights."""
    networks = {}
    for form in ("whole", "cell", "sum"):
        torch.manual_seed(0)
        networks[form] = Sequences(form).double()
    one_product, cell = OneProductSequences().double(), networks["cell"].cell
    with torch.no_grad():
        one_product.cell.gates.weight.copy_(torch.cat([cell.weight_ih, cell.weight_hh], 1))
        one_product.cell.gates.bias.copy_(cell.bias_ih + cell.bias_hh)
    one_product.head.load_state_dict(networks["cell"].head.state_dict())
    for network in networks.values():
        network.head.load_state_dict(networks["cell"].head.state_dict())
    return {**networks, "one product": one_product}


@pytest.mark.parametrize("length", [1, 6])
def test_recurrent_networks_agree_in_all_forms(length):
    x = torch.randn(3, length, FEATURES, dtype=torch.float64)
    found = {}
    for form, network in three_forms().items():
        with record_potentials(network) as potentials:
            output = network(x)
        by_layer = recorded_layers(potentials, {"head": 1})
        assert len(by_layer) == 2, form
        found[form] = (output.detach(), by_layer.pop("head"), *by_layer.values())
    for values in found.values():
        torch.testing.assert_close(values[0], found["whole"][0])
        assert values[1:] == pytest.approx(found["whole"][1:], rel=1e-9)


def test_the_cell_written_out_is_named_after_its_place():
    network = Sequences("sum").double()
    with record_potentials(network) as potentials:
        network(torch.randn(3, 2, FEATURES, dtype=torch.float64))
    assert {name.split(":")[0] for name in potentials} == {"cell.sigmoid", "head"}
