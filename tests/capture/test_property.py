"""Random networks: the same layers in a training, around its step, and around the network alone."""

import logging

import pytest
import torch
from hypothesis import event, given
from torch import Tensor

from lightning_psp import PSPCallback, record_potentials
from tests.support.lightning_cases import fit
from tests.support.random_networks.grammar import programs
from tests.support.random_networks.program import Program

OVERWRITTEN = "overwritten in place after their nonlinearity"

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),
    pytest.mark.filterwarnings("ignore:Of a network of several layers, only the output was found"),
    pytest.mark.filterwarnings("ignore:No output layer was found"),
    pytest.mark.filterwarnings("ignore:No layer was found for .*mul"),  # the product of a value and itself
]


@pytest.fixture(autouse=True, scope="module")
def _quiet_lightning():
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def recorded(program: Program) -> dict[str, Tensor]:
    """⟨z²⟩ of each layer of the program's network and loss."""
    network = program.make_network()
    with record_potentials(network) as potentials:
        loss = program.make_loss()(network, program.batch())
    assert loss.ndim == 0
    layers: dict[str, list[Tensor]] = {}
    for entry, z in potentials.items():
        layers.setdefault(potentials.layers[entry][0], []).append(z.detach().flatten())
    return {layer: torch.cat(parts).square().mean() for layer, parts in layers.items()}


@given(program=programs())
def test_layers_in_lightning_and_recorded(program):
    try:
        wanted = recorded(program)
        _, trainer = fit(program.make_network(), program.make_loss(), [program.batch()], PSPCallback(lam=0.1))
    except RuntimeError as error:
        if OVERWRITTEN not in str(error):
            raise
        event("refused")
        return
    prefix = "psp_z2_train/network."
    found = {k.removeprefix(prefix): v for k, v in trainer.callback_metrics.items() if k.startswith(prefix)}
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    for layer, mean_square in wanted.items():
        torch.testing.assert_close(found[layer].double(), mean_square, rtol=1e-5, atol=1e-12)
