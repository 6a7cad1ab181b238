"""How large the penalty's gradient is beside the loss's, and λ that keeps it so."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("lightning")

from torch.utils.data import DataLoader, TensorDataset

from lightning_psp import PSPCallback
from support.classifier import Classifier
from support.gradient_share import KEPT, KeepShare, balanced_layers, gradient_norms
from tests.support.small import quiet_trainer


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()


def batch(seed=1, samples=8):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, 6, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(3, (samples,), generator=generator)


def by_hand(net, inputs, labels):
    """Gradients of cross-entropy and of each layer's part of the mean of z², by the chain rule."""
    first, last = net[0], net[2]
    hidden = inputs @ first.weight.T + first.bias
    active = hidden.clamp(min=0)
    logits = active @ last.weight.T + last.bias
    size = len(inputs)
    by_logits = {
        "loss": (logits.softmax(dim=1) - F.one_hot(labels, 3)) / size,
        "own": torch.zeros_like(logits),
        "output": 2 * logits / logits.numel() / 2,
    }
    parts = {}
    for name, gradient in by_logits.items():
        by_hidden = (gradient @ last.weight) * (hidden > 0)
        if name == "own":
            by_hidden = 2 * hidden / hidden.numel() / 2
        of = [by_hidden.T @ inputs, by_hidden.sum(0), gradient.T @ active, gradient.sum(0)]
        parts[name] = torch.cat([each.flatten() for each in of]).detach()
    return parts


def test_norms_of_both_gradients():
    net = network()
    inputs, labels = batch()
    parts = by_hand(net, inputs, labels)
    loss, penalty = gradient_norms(net, inputs, labels)
    assert loss == pytest.approx(parts["loss"].norm().item(), rel=1e-12)
    assert penalty == pytest.approx((parts["own"] + parts["output"]).norm().item(), rel=1e-12)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_running_statistics_stay():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).double()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    gradient_norms(net, *batch())
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())


def test_layers_are_balanced():
    net = network()
    inputs, labels = batch()
    parts = by_hand(net, inputs, labels)
    factors = balanced_layers(net, inputs)
    whole = (parts["own"] + parts["output"]).norm().item()
    assert factors["0"] * parts["own"].norm().item() == pytest.approx(whole / 2, rel=1e-12)
    assert factors["2"] * parts["output"].norm().item() == pytest.approx(whole / 2, rel=1e-12)


def train(callbacks, batches, learning_rate=1.0):
    """Train by plain SGD: with a learning rate of 1 a step is the gradient."""
    module = Classifier(network(), learning_rate=learning_rate)
    inputs, labels = (torch.cat(each) for each in zip(*batches, strict=True))
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=len(batches[0][0]))
    quiet_trainer(*callbacks).fit(module, loader, loader)
    return module


def flat(net):
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


@pytest.mark.parametrize("balance", [False, True])
def test_the_penalty_of_a_training_has_the_share(balance):
    inputs, labels = batch()
    parts = by_hand(network(), inputs, labels)
    factors = {f"network.{name}": each for name, each in balanced_layers(network(), inputs).items()} if balance else {}
    psp = PSPCallback(lam=1.0, layer_lam=factors, entropy=(), log_layers=False)
    trained = train([KeepShare(psp, 0.3), psp], [(inputs, labels)])
    penalty = flat(network()) - flat(trained.network) - parts["loss"]
    if not balance:
        assert penalty.norm().item() == pytest.approx(0.3 * parts["loss"].norm().item(), rel=1e-9)
    expected = sum(0.15 * parts["loss"].norm() * part / part.norm() for part in (parts["own"], parts["output"]))
    if balance:
        torch.testing.assert_close(penalty, expected, rtol=1e-9, atol=1e-12)


def test_measured_once_or_every_few_steps():
    batches = [batch(seed) for seed in range(5)]
    psp = PSPCallback(lam=1.0, entropy=())
    once = KeepShare(psp, 0.2)
    train([once, psp], batches, learning_rate=0.0)
    norms = [gradient_norms(network(), *each) for each in batches]
    assert once.lams == [pytest.approx(0.2 * norms[0][0] / norms[0][1], rel=1e-9)]
    often = KeepShare(psp, 0.2, every=2)
    train([often, psp], batches, learning_rate=0.0)  # the network stays as it is
    loss, penalty = norms[0]
    expected = [0.2 * loss / penalty]
    for step in (2, 4):
        loss, penalty = (KEPT * old + (1 - KEPT) * new for old, new in zip((loss, penalty), norms[step], strict=True))
        expected.append(0.2 * loss / penalty)
    assert often.lams == pytest.approx(expected, rel=1e-9)
    assert psp.lam == often.lams[-1]
    assert often.seconds > 0


def test_a_share_is_taken_up_from_a_checkpoint():
    psp = PSPCallback(lam=1.0)
    keeper = KeepShare(psp, 0.2)
    keeper.load_state_dict({"lams": [0.5, 0.25], "seconds": 1.0, "norms": (2.0, 3.0)})
    assert psp.lam == 0.25
    assert keeper.state_dict() == {"lams": [0.5, 0.25], "seconds": 1.0, "norms": (2.0, 3.0)}
