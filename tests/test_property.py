"""Random networks and losses against a reference by hand: gradients, layers and logged values.

A few hundred examples, the same in every run. Thousands of new ones:

    python -m pytest tests/test_property.py --hypothesis-profile=thorough

A failure prints the smallest network that shows it, as source.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_psp import PSPCallback, psp_penalty, record_potentials
from tests.cases import REDUCTIONS
from tests.lightning_cases import fit
from tests.random_networks import programs
from tests.random_programs import Program
from tests.random_reference import Pass, Reference, penalty
from tests.reference import norm

OVERWRITTEN = "overwritten in place after their nonlinearity"
Gradients = dict[str, Tensor]

pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode")


@pytest.fixture(autouse=True, scope="module")
def _quiet_lightning():
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def by_layer(network: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters of a network by the name of their layer, in a block or not."""
    return {name.removeprefix("block."): p for name, p in network.named_parameters() if p.requires_grad}


def reference_gradients(value: Tensor, reference: Reference) -> Gradients:
    trained = {
        f"{layer}.{name}": p
        for layer, module in reference.layers.items()
        for name, p in module.named_parameters()
        if p.requires_grad
    }
    found = torch.autograd.grad(value, list(trained.values()), retain_graph=True, allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(trained.items(), found, strict=True)}


def assert_equal(found: Gradients, expected: Gradients) -> None:
    assert found.keys() == expected.keys()
    length = norm(expected).item()
    for name, g in expected.items():
        # where normalisation cancels a gradient, its rounding is left
        scale = max(g.norm().item(), 1e-4 * length)
        assert (found[name] - g).norm().item() <= 1e-8 * scale, name


def combined(reference: Reference, value: Tensor) -> tuple[float, Gradients]:
    """The factor that makes a penalty weigh as much as the loss, and the gradient of both."""
    of_loss = reference_gradients(reference.loss, reference)
    of_penalty = reference_gradients(value, reference)
    lam = float(norm(of_loss) / norm(of_penalty))
    return lam, {name: g + lam * of_penalty[name] for name, g in of_loss.items()}


@contextmanager
def refusals(reference: Reference) -> Iterator[None]:
    """Lets pass that a potential which was overwritten later is refused."""
    try:
        yield
    except RuntimeError as error:
        if not reference.is_refusable or OVERWRITTEN not in str(error):
            raise
        event("refused")


def make_reference(program: Program) -> Reference:
    return Reference(program, program.make_layers(), program.shared_memory())


@given(program=programs(), reduction=st.sampled_from(REDUCTIONS))
def test_in_lightning(program, reduction):
    reference = make_reference(program)
    value = penalty(reference.penalised(), reduction)
    lam, expected = combined(reference, value)

    with refusals(reference):
        callback = PSPCallback(lam=lam, reduction=reduction)
        module, trainer = fit(program.make_network(), program.make_loss(), [program.batch()], callback)

        (gradients,) = module.gradients
        assert_equal({name.removeprefix("block."): g for name, g in gradients.items()}, expected)
        logged = trainer.callback_metrics
        assert logged["psp/penalty"].item() == pytest.approx(lam * value.item(), rel=1e-9)
        means = {layer: mean_square(passes) for layer, passes in reference.watched().items()}
        assert logged["psp/z2"].item() == pytest.approx(sum(means.values()) / len(means), rel=1e-9)
        layers = sorted(logged[key].item() for key in logged if key.startswith("psp_z2_train/"))
        assert layers == pytest.approx(sorted(means.values()), rel=1e-5)


def mean_square(passes: list[Pass]) -> float:
    return torch.cat([noted.z.detach().flatten() for noted in passes]).square().mean().item()


@given(program=programs(every_potential=True), reduction=st.sampled_from(REDUCTIONS))
def test_outside_lightning(program, reduction):
    reference = make_reference(program)
    layers = reference.recorded()
    with_gradient = {
        layer: passes for layer, passes in layers.items() if any(noted.z.requires_grad for noted in passes)
    }
    lam, expected = combined(reference, penalty(with_gradient, reduction))
    network = program.make_network()

    with refusals(reference):
        with record_potentials(network) as potentials:
            loss = program.make_loss()(network, program.batch())

        assert len(potentials) == len(layers)
        for z, passes in zip(potentials.values(), layers.values(), strict=True):
            torch.testing.assert_close(z, torch.cat([noted.z for noted in passes]), rtol=1e-9, atol=1e-12)
        (loss + lam * psp_penalty(potentials, reduction)).backward()
        found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in by_layer(network).items()}
        assert_equal(found, expected)
