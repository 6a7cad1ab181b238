"""The gradient with the entropy term against one written out by hand, in the situations of a training."""

import math
from collections import namedtuple
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_psp import PSPCallback
from tests.support.cases import Case, classification_batch, cross_entropy
from tests.support.cases.activations import ACTIVATION_CASES
from tests.support.cases.checkpoints import KINDS, checkpoint_cases
from tests.support.cases.structures import STRUCTURE_CASES
from tests.support.cases.torchvision import TORCHVISION_CASES
from tests.support.entropy_reference import soft_entropy
from tests.support.gradients import ScaledLoss, assert_equal_gradients
from tests.support.lightning_cases import fit
from tests.support.reference import norm, reference_step

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")
TORCHVISION = {"resnet18", "mobilenet_v2", "vit_small"}
# the batches of these have different sizes
REFUSED = {"two batches", "two batches, in place"}
HIDDEN = [case for case in ACTIVATION_CASES + STRUCTURE_CASES if not case.name.startswith("no layer")]
CASES = [case for case in HIDDEN if case.name not in REFUSED]
CASES += [case for case in TORCHVISION_CASES if case.name in TORCHVISION]
BY_NAME = {case.name: case for case in CASES}
TEMPERATURE = 0.7
Terms = namedtuple("Terms", "lam weight gradients value penalty")
entropy = partial(soft_entropy, temperature=TEMPERATURE)


def labels_of(batch):
    """Three classes of unequal sizes, whatever the loss makes of the batch."""
    return torch.arange(len(batch[0])) % 5 // 2


def term_of(case, batch):
    """The mean over hidden layers; passes count as one batch."""
    labels = labels_of(batch)
    outputs = 2 if case.name == "two heads" else 1

    def term(live):
        return sum(entropy(z, labels.repeat(len(z) // len(labels))) for z in live[:-outputs]) / len(live[:-outputs])

    return term


def reference(case, batch, network=None, reduction="mean"):
    """Gradients as long as each other's of the loss, the penalty and the term, and the factors that make them so."""
    network = case.build()[0] if network is None else network
    term = term_of(case, batch)
    step = reference_step(network, case.loss, batch, reduction, case.output_layer, term)
    return step, (norm(step.loss_gradients) / norm(step.term_gradients)).item()


def combined(step, lam, weight):
    return {name: g + weight * step.term_gradients[name] for name, g in step.gradients(lam).items()}


def callback(lam, weight, **settings):
    settings = {"entropy_temperature": TEMPERATURE, "target": labels_of, **settings}
    return PSPCallback(lam=lam, entropy_weight=weight, **settings)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient(case):
    network, (batch,) = case.build()
    step, weight = reference(case, batch)

    module, trainer = fit(network, case.loss, [batch], callback(0.0, -weight))

    assert_equal_gradients(module.gradients[0], combined(step, 0.0, -weight), 1e-8)
    assert trainer.callback_metrics["psp/penalty"] == 0.0


@pytest.mark.parametrize("reduction", ["mean", "sum", "squared_mean"])
@pytest.mark.parametrize("name", ["LeNet-5", "residual sum, functional in place", "view in place", "frozen backbone"])
def test_gradient_with_the_penalty(name, reduction):
    case = BY_NAME[name]
    network, (batch,) = case.build()
    step, weight = reference(case, batch, reduction=reduction)
    lam = step.balanced_lam()

    module, trainer = fit(network, case.loss, [batch], callback(lam, weight, reduction=reduction))

    assert_equal_gradients(module.gradients[0], combined(step, lam, weight), 1e-8)
    assert trainer.callback_metrics["psp/penalty"].item() == pytest.approx(lam * step.penalty.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["LeNet-5", "residual sum, functional in place", "triplet", "dead head"])
def test_logged_value(name):
    case = BY_NAME[name]
    network, (batch,) = case.build()
    values = []
    term = term_of(case, batch)

    def noted(live):
        values.append(term(live))
        return values[-1]

    reference_step(network, case.loss, batch, "mean", case.output_layer, noted)
    _, trainer = fit(network, case.loss, [batch], callback(0.0, -0.3))
    assert trainer.callback_metrics["psp/entropy_term"].item() == pytest.approx(-0.3 * values[0].item(), rel=1e-9)


@pytest.mark.parametrize("lam", [0.0, 0.2])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", ["LeNet-5", "residual sum, functional in place"])
def test_scaled_and_accumulated(name, accumulate, lam):
    case = BY_NAME[name]
    network, batches = case.build(batches=accumulate)
    steps = [reference(case, batch) for batch in batches]
    weight = steps[0][1]

    module, trainer = fit(
        network,
        case.loss,
        batches,
        callback(lam, weight),
        plugins=[ScaledLoss(autocast=False)],
        accumulate_grad_batches=accumulate,
    )

    (gradients,) = module.gradients
    parts = [combined(step, lam, weight) for step, _ in steps]
    assert_equal_gradients(gradients, {k: sum(part[k] for part in parts) / accumulate for k in parts[0]}, 1e-8)
    term = trainer.callback_metrics["psp/entropy_term"].item() / weight
    assert 0 < term < 3  # unscaled: at most a bit a class


@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        (torch.bfloat16, {"precision": "bf16-mixed"}),
        (torch.float16, {"plugins": [ScaledLoss(autocast=True)]}),
    ],
    ids=["bf16", "fp16"],
)
@pytest.mark.parametrize("name", ["LeNet-5", "residual sum, functional in place"])
def test_half_precision_comes_close(name, dtype, settings):
    case = BY_NAME[name]
    network, (batch,) = case.build()
    network, batch = network.float(), (batch[0].float(), batch[1])
    with torch.autocast("cpu", dtype, cache_enabled=False):
        step, weight = reference(case, batch, network)

    module, _ = fit(network, case.loss, [batch], callback(0.0, weight), **settings)

    expected = combined(step, 0.0, weight)
    difference = {name: module.gradients[0][name] - g for name, g in expected.items()}
    assert norm(difference) <= 1e-2 * norm(expected)


@pytest.mark.parametrize("lam", [0.0, 0.2])
@pytest.mark.parametrize("name", list(checkpoint_cases(False)))
@KINDS
def test_checkpoints(name, reentrant, lam):
    case = checkpoint_cases(reentrant)[name]
    network, (batch,) = case.build()
    step, weight = reference(case, batch, network)

    # "64-true" sets the default type in the first pass alone, which nested checkpoints of torch 2.6 take for a change
    module, _ = fit(network, case.loss, [batch], callback(lam, weight), precision="32-true")

    assert_equal_gradients(module.gradients[0], combined(step, lam, weight), 1e-8)


def test_recurrent_layer():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.RNN(3, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.rnn(x.transpose(0, 1))[0][-1])

    case = Case("recurrent", Recurrent, lambda: classification_batch(5, 6, 3))
    network, (batch,) = case.build()
    hidden, potentials = torch.zeros(5, 4, dtype=torch.float64), []
    for x in batch[0].unbind(1):
        rnn = network.rnn
        potentials.append(x @ rnn.weight_ih_l0.T + rnn.bias_ih_l0 + hidden @ rnn.weight_hh_l0.T + rnn.bias_hh_l0)
        hidden = potentials[-1].tanh()
    loss = F.cross_entropy(network.head(hidden), batch[1]) + 0.4 * entropy(torch.stack(potentials, 1), labels_of(batch))
    expected = dict(zip(dict(network.named_parameters()), torch.autograd.grad(loss, network.parameters()), strict=True))

    module, _ = fit(network, case.loss, [batch], callback(0.0, 0.4))

    assert_equal_gradients(module.gradients[0], expected, 1e-8)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_passes_of_different_size_are_refused(name):
    (case,) = (case for case in STRUCTURE_CASES if case.name == name)
    network, (batch,) = case.build()
    with pytest.raises(ValueError, match=r"layer '.*' have the shape.*\d class labels.*exclude="):
        fit(network, case.loss, [batch], callback(0.0, 0.1, target=lambda batch: labels_of(batch[0])))


class Turned(nn.Module):
    """Its first layer has time in front."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x.transpose(0, 1))).mean(0))))


def test_potentials_without_the_batch_in_front():
    case = Case("turned", Turned, lambda: classification_batch(5, 6, 3))
    network, (batch,) = case.build()
    with pytest.raises(ValueError, match=r"'network.first'.*\[6, 5, 4\].*5 class labels.*exclude=\('network.first',\)"):
        fit(network, case.loss, [batch], callback(0.0, 0.1))
    module, _ = fit(network, case.loss, [batch], callback(0.0, 0.4, exclude=("network.first",)))
    network, (batch,) = case.build()
    hidden = network.second(torch.relu(network.first(batch[0].transpose(0, 1))).mean(0))
    loss = F.cross_entropy(network.head(torch.relu(hidden)), batch[1]) + 0.4 * entropy(hidden, labels_of(batch))
    expected = dict(zip(dict(network.named_parameters()), torch.autograd.grad(loss, network.parameters()), strict=True))
    assert_equal_gradients(module.gradients[0], expected, 1e-8)


def test_passes_of_different_shapes():
    def twice(network, batch):
        return cross_entropy(network, batch) + cross_entropy(network, (batch[0][:, :3], batch[1]))

    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d((1, 4)), nn.Flatten())
    case = Case("twice", lambda: network, lambda: classification_batch(5, 6, 3), twice)
    network, (batch,) = case.build()
    with pytest.raises(ValueError, match=r"'network.0'.*\[5, 6, 4\], \[5, 3, 4\].*exclude=\('network.0',\)"):
        fit(network, twice, [batch], callback(0.0, 0.1))


def test_a_positive_weight_lowers_the_entropy_and_a_negative_one_raises_it():
    def entropy_in_step(number, weight):
        network, batches = BY_NAME["LeNet-5"].build()
        _, trainer = fit(network, lambda *step: 1e-3 * cross_entropy(*step), batches * number, callback(0.0, weight))
        return trainer.callback_metrics["psp/entropy_term"].item() / weight

    assert entropy_in_step(10, 0.3) < 0.99 * entropy_in_step(1, 0.3)
    assert entropy_in_step(10, -0.3) > 1.001 * entropy_in_step(1, -0.3)


@pytest.mark.filterwarnings("ignore:The potentials of layer .* hold NaN or infinity")
@pytest.mark.parametrize("value", [1e3, -1e3, math.inf])
def test_certain_states_add_nothing(value):
    """Where the probability of a state is 0 or 1, the slope of the entropy is infinite."""

    class Saturated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 4), nn.Linear(4, 3)

        def forward(self, x):
            z = self.first(x)
            # a constant in front of it in half of the units
            z = torch.cat([z[:, :2], z[:, 2:] * 0 + value], 1)
            return self.second(torch.sigmoid(z))

    case = Case("saturated", Saturated, lambda: classification_batch(5, 6))
    network, (batch,) = case.build()
    z = network.first(batch[0])[:, :2]
    logits = network.second(torch.sigmoid(torch.cat([z, torch.full_like(z, value)], 1)))
    # two of four units have an entropy
    loss = F.cross_entropy(logits, batch[1]) + 0.5 * entropy(z, labels_of(batch)) / 2
    expected = dict(zip(dict(network.named_parameters()), torch.autograd.grad(loss, network.parameters()), strict=True))

    module, trainer = fit(network, case.loss, [batch], callback(0.0, 0.5))

    assert_equal_gradients(module.gradients[0], expected, 1e-8)
    assert math.isfinite(trainer.callback_metrics["psp/entropy_term"])
