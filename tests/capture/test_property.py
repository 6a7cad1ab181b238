"""Random networks: the same layers in a training, around its step, and around the network alone."""

import logging

import pytest
import torch
from hypothesis import event, given
from torch import Tensor, nn

from lightning_psp import PSPCallback, record_potentials
from tests.support.lightning_cases import fit
from tests.support.random_networks.explicit import Layer, UnclearError, explicit, out_of_place
from tests.support.random_networks.grammar import programs
from tests.support.random_networks.program import Program

LAM = 0.1
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


def assert_same_layers(found: dict[str, Tensor], wanted: dict[str, Layer]) -> None:
    """The same number of layers with the same ⟨z²⟩, and those names that the definitions say."""
    values = {name: torch.cat([z.flatten() for z, _ in layer.passes]).square().mean() for name, layer in wanted.items()}
    named = {name for name, layer in wanted.items() if layer.is_named}
    assert named <= found.keys(), named - found.keys()
    assert len(found) == len(wanted), (sorted(found), sorted(wanted))
    for name in named:
        torch.testing.assert_close(found[name].double(), values[name].detach(), rtol=1e-5, atol=1e-12)
    others = sorted(value.item() for name, value in found.items() if name not in named)
    assert others == pytest.approx(sorted(v.item() for k, v in values.items() if k not in named), rel=1e-5)


def penalty(layers: dict[str, Layer], alive_only: bool) -> Tensor:
    """The mean over layers of the mean over a layer's values."""
    terms = []
    for layer in layers.values():
        values = [z.flatten() for z, is_alive in layer.passes if is_alive or not alive_only]
        terms += [torch.cat(values).square().mean()] if values else []
    return torch.stack(terms).mean() if terms else torch.zeros((), dtype=torch.float64)


def assert_gradients(found: dict[str, Tensor], value: Tensor, network: nn.Module) -> None:
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    wanted = torch.autograd.grad(value, list(trained.values()), retain_graph=True, allow_unused=True)
    assert found.keys() == trained.keys()
    for (name, p), gradient in zip(trained.items(), wanted, strict=True):
        gradient = torch.zeros_like(p) if gradient is None else gradient
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-12, msg=name)


@given(program=programs(every_potential=True))
def test_layers_and_gradient_are_those_that_the_generator_knows(program):
    program = out_of_place(program)
    try:
        network, loss, layers = explicit(program)
    except UnclearError as error:
        event(f"unclear: {error}")
        return
    event("clear")
    module, trainer = fit(program.make_network(), program.make_loss(), [program.batch()], PSPCallback(lam=LAM))
    prefix = "psp_z2_train/network."
    found = {k.removeprefix(prefix): v for k, v in trainer.callback_metrics.items() if k.startswith(prefix)}
    assert_same_layers(found, layers)
    (gradients,) = module.gradients
    assert_gradients(gradients, loss + LAM * penalty(layers, alive_only=True), network)
    assert_same_layers(recorded(program), layers)
