"""Arguments that name layers, on layers with several passes or parts."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_psp import PSPCallback
from tests.support.layers.case import LayerCase, affine, cross_entropy, expected, expected_of_choice, one, passes
from tests.support.layers.cases_logits import labelled
from tests.support.layers.cases_passes import Deep
from tests.support.layers.table import BY_NAME
from tests.support.layers.watched import (
    PREFIX,
    assert_gradients,
    assert_layers,
    fit,
    gradients_by_module,
    gradients_by_network,
    gradients_in_lightning,
    logged_layers,
    recorded,
    recorded_layers,
)

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
CHOSEN = {
    "block in depth": "block",
    "residual block in depth": "block",
    "function of an ODE": "slope.first",
    "cell over batches of sequences": "cell.tanh",
    "head of several levels": "head.0",
    "siamese": "tower.2",
    "discriminator on real and fake": "discriminator.0",
    "embedding through SiLU in each block": "embed",
    "stacked experts": "experts.up",
    "LSTM cell": "cell",
    "LSTM written out, one product": "cell.gates",
    "both halves": "act.proj",
    "gate half": "act.proj",
    "chunks of the head's input": "head",
    "residual sums in a loop, function": "block.relu",
    "residual sums in a loop, module": "block.act:1",
}
RUNS = [(name, reduction) for name in CHOSEN for reduction in BY_NAME[name].reductions if reduction != "squared_mean"]
runs = pytest.mark.parametrize(("name", "reduction"), RUNS)


@runs
def test_a_factor_on_a_layer(name, reduction):
    case, layer = BY_NAME[name], CHOSEN[name]
    wanted = expected_of_choice(case, reduction, factors={layer: 3.0})
    lam = wanted.balanced_lam()
    found = gradients_in_lightning(case, reduction, lam, layer_lam={PREFIX + layer: 3.0})
    assert_gradients(found, wanted.gradients(lam))


@pytest.mark.parametrize("gradients", [gradients_in_lightning, gradients_by_network, gradients_by_module])
@runs
def test_a_layer_on_its_own(name, reduction, gradients):
    case, layer = BY_NAME[name], CHOSEN[name]
    wanted = expected_of_choice(case, reduction, chosen=(layer,))
    lam = wanted.balanced_lam()
    path = layer if gradients is gradients_by_network else PREFIX + layer
    assert_gradients(gradients(case, reduction, lam, include=(path,)), wanted.gradients(lam))


@pytest.mark.parametrize("name", CHOSEN)
def test_a_layer_left_out(name):
    case, layer = BY_NAME[name], CHOSEN[name]
    others = tuple(k for k in expected(case).mean_squares if k != layer)
    wanted = expected_of_choice(case, chosen=others)
    _, trainer = fit(case, PSPCallback(lam=0.5, exclude=(PREFIX + layer,)))
    assert_layers(logged_layers(trainer), wanted.mean_squares, PREFIX, rel=1e-5)
    assert trainer.callback_metrics["psp/penalty"].item() == pytest.approx(0.5 * wanted.penalty.item(), rel=1e-5)
    potentials = recorded(case, exclude=(layer,))[2]
    assert_layers(recorded_layers(potentials, wanted.mean_squares), wanted.mean_squares)


@pytest.mark.parametrize("name", [name for name in CHOSEN if name not in ("siamese", "chunks of the head's input")])
def test_output_left_out(name):
    case = BY_NAME[name]
    hidden = tuple(k for k in expected(case).mean_squares if k not in case.outputs)
    wanted = expected_of_choice(case, chosen=hidden)
    lam = wanted.balanced_lam()
    for gradients in (gradients_in_lightning, gradients_by_network, gradients_by_module):
        assert_gradients(gradients(case, "mean", lam, output=False), wanted.gradients(lam))


class Classifier(Deep):
    def __init__(self) -> None:
        super().__init__(residual=False)
        self.head = nn.Linear(self.block.out_features, 3)


def classified(network, batch):
    x, found = affine(network.embed, batch[0]), []
    for _ in range(3):
        found.append(affine(network.block, x))
        x = torch.tanh(found[-1])
    z = affine(network.head, x)
    return cross_entropy(z, batch[1]), {"block": passes(found), "head": one(z)}


@pytest.mark.filterwarnings("ignore:No sample of the classes")
def test_passes_are_further_observations_for_the_entropy():
    case = LayerCase(
        "classifier",
        Classifier,
        labelled,
        lambda network, batch: functional.cross_entropy(network(batch[0]), batch[1]),
        classified,
    )
    module, trainer = fit(case, PSPCallback(lam=0.5, entropy=(1,)), validates=True)
    x, labels = case.build()[1]
    with torch.no_grad():
        found = classified(module.network, (x, labels))[1]["block"]
    states = torch.cat([z > 0 for (z,) in found]).double()
    total = torch.zeros(states.shape[1], dtype=torch.float64)
    for label in labels.unique():
        p = states[labels.repeat(len(found)) == label].mean(0)
        total -= torch.xlogy(p, p) / torch.log(torch.tensor(2.0)) + torch.xlogy(1 - p, 1 - p) / torch.log(
            torch.tensor(2.0)
        )
    logged = trainer.callback_metrics["psp_entropy_val/network.block"]
    assert logged.item() == pytest.approx(total.mean().item(), rel=1e-5)
