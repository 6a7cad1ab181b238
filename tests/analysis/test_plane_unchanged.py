"""What a plane leaves behind: nothing, wherever it ends."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune, spectral_norm
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import lightning_psp.analysis
from lightning_psp.analysis import constant_units, hessian_trace, loss_plane, psp_gradient_parts
from tests.support.analysis.planes import CLASSES, Normalised, batches, solutions

FOLDER = str(Path(lightning_psp.analysis.__file__).parent)


class Everything:
    """All that is to be the same afterwards."""

    def __init__(self, network, generator):
        self.network = network
        self.objects = [*network.parameters(), *network.buffers()]
        self.storages = [tensor.data_ptr() for tensor in self.objects]
        self.versions = [tensor._version for tensor in network.parameters()]
        self.values = [tensor.detach().clone() for tensor in self.objects]
        self.gradients = [(parameter.grad, parameter.grad.clone()) for parameter in network.parameters()]
        self.flags = [parameter.requires_grad for parameter in network.parameters()]
        self.modes = [part.training for part in network.modules()]
        self.hooks = [len(part._forward_hooks) for part in network.modules()]
        self.momentum = network.bn.momentum
        self.generator, self.own = torch.get_rng_state(), generator.get_state()
        self.python, self.numpy = random.getstate(), np.random.get_state()

    def assert_the_same(self, generator):
        network = self.network
        now = [*network.parameters(), *network.buffers()]
        assert all(a is b for a, b in zip(now, self.objects, strict=True))
        assert [tensor.data_ptr() for tensor in now] == self.storages
        assert [tensor._version for tensor in network.parameters()] == self.versions
        assert all(torch.equal(a, b) for a, b in zip(now, self.values, strict=True))
        for parameter, (gradient, value) in zip(network.parameters(), self.gradients, strict=True):
            assert parameter.grad is gradient
            assert torch.equal(gradient, value)
        assert [parameter.requires_grad for parameter in network.parameters()] == self.flags
        assert [part.training for part in network.modules()] == self.modes
        assert [len(part._forward_hooks) for part in network.modules()] == self.hooks
        assert network.bn.momentum == self.momentum
        assert torch.is_grad_enabled()
        assert torch.equal(torch.get_rng_state(), self.generator)
        assert torch.equal(generator.get_state(), self.own)
        assert random.getstate() == self.python
        assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), self.numpy, strict=True))


@pytest.fixture
def scene():
    """A network with gradients, one frozen parameter and mixed modes, two solutions, and a loader that shuffles."""
    torch.manual_seed(0)
    network = Normalised()
    first, second = solutions(network)
    network.conv.bias.requires_grad_(False)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    network.fc.eval()
    network.register_forward_hook(lambda *call: None)
    x, labels = (torch.cat(parts) for parts in zip(*batches(dtype=torch.float32), strict=True))
    generator = torch.Generator().manual_seed(3)
    data = TensorDataset(x, labels)
    loader = DataLoader(data, batch_size=10, sampler=RandomSampler(data, generator=generator))
    return network, first, second, loader, generator


def noisy(module, batch):
    """A loss that draws from every generator and moves a buffer."""
    scores = module(batch[0])
    module.bn.running_mean.add_(random.random() + np.random.rand())
    return F.cross_entropy(scores + torch.randn_like(scores), batch[1])


@pytest.mark.parametrize("batch_norm", ["keep", "reestimate"])
def test_after_the_end(scene, batch_norm):
    network, first, second, loader, generator = scene
    x = torch.ones(2, 9, requires_grad=True)
    graph = network.fc(x).sum()
    before = Everything(network, generator)
    found = loss_plane(network, first, second, loader, loss=noisy, size=(3, 2), batch_norm=batch_norm)
    before.assert_the_same(generator)
    assert found.values["loss"].isfinite().all()
    (gradient,) = torch.autograd.grad(graph, x)  # through weights that were others in the meantime
    torch.testing.assert_close(gradient, network.fc.weight.sum(0).expand(2, 9))


@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize("analysis", [loss_plane, hessian_trace])
def test_gradients_of_a_loss_that_goes_backwards_itself(scene, analysis, with_gradients):
    """As that of an adversarial example does."""
    network, first, second, loader, generator = scene
    before = Everything(network, generator)
    if not with_gradients:
        network.zero_grad()

    def loss(module, batch):
        with torch.enable_grad():
            x = batch[0].clone().requires_grad_()
            F.cross_entropy(module(x), batch[1]).backward()
        if batch[0][0, 0] > 0:
            module.zero_grad()
        return F.cross_entropy(module(batch[0] + 0.1 * x.grad.sign()), batch[1])

    if analysis is loss_plane:
        loss_plane(network, first, second, loader, loss=loss, size=(3, 2), measures=("loss", "z2"))
    else:
        hessian_trace(network, loader, loss=loss, samples=2)
    if with_gradients:
        before.assert_the_same(generator)
    else:
        assert [parameter.grad for parameter in network.parameters()] == [None] * 6


def test_random_numbers_are_the_same_at_every_point(scene):
    network, first, second, loader, _ = scene
    orders = []

    def loss(module, batch):
        orders.append(batch[1].tolist())
        return F.cross_entropy(module(batch[0]), batch[1])

    loss_plane(network, first, second, loader, loss=loss, size=(3, 1), measures=("loss",))
    assert orders[:3] == orders[3:6] == orders[6:]
    assert len(orders) == 9
    noise = loss_plane(network, first, second, loader, loss=noisy, size=(3, 1), measures=("loss",))
    again = loss_plane(network, first, second, loader, loss=noisy, size=(3, 1), measures=("loss",))
    assert torch.equal(noise.values["loss"], again.values["loss"])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("call", [1, 5, 14])
def test_after_an_error_in_the_loss(scene, error, call):
    network, first, second, loader, generator = scene
    before = Everything(network, generator)
    calls = []

    def loss(module, batch):
        calls.append(batch)
        if len(calls) == call:
            raise error
        return noisy(module, batch)

    with pytest.raises(error):
        loss_plane(network, first, second, loader, loss=loss, size=(3, 2), batch_norm="reestimate")
    before.assert_the_same(generator)


class Interrupted:
    """Ctrl-C at the n-th line of this package's analysis that is run."""

    def __init__(self, line):
        self.line, self.lines = line, 0

    def __call__(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(FOLDER):
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.line:
                raise KeyboardInterrupt
        return self


def lines_of(run):
    counter = Interrupted(0)
    before = sys.gettrace()
    sys.settrace(counter)
    try:
        run()
    finally:
        sys.settrace(before)
    return counter.lines


@pytest.mark.parametrize("analysis", ["loss_plane", "constant_units"])
def test_after_ctrl_c_at_any_line(scene, analysis):
    network, first, second, loader, generator = scene
    data = [next(iter(loader))]

    def run():
        if analysis == "constant_units":
            constant_units(network, data)
        else:
            loss_plane(network, first, second, data, size=(2, 1), measures=("error", "z2"), batch_norm="reestimate")

    before = Everything(network, generator)
    lines = lines_of(run)
    assert lines > 50
    # Every line of the restoration, and a sample of those before it.
    for line in [*range(1, lines - 80, 17), *range(max(1, lines - 80), lines + 1)]:
        tracer, tracer_before = Interrupted(line), sys.gettrace()
        sys.settrace(tracer)
        try:
            run()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(tracer_before)
        assert tracer.lines >= line
        before.assert_the_same(generator)


def test_a_network_made_in_inference_mode():
    with torch.inference_mode():
        network = nn.Linear(4, CLASSES)
    first, second = solutions(network)
    data = batches(dtype=torch.float32)
    before = network.weight.detach().clone()
    found = loss_plane(network, first, second, data, size=(2, 1), margin=0, measures=("loss",))
    expected = F.cross_entropy(data[0][0] @ second["weight"].T + second["bias"], data[0][1])
    assert loss_plane(network, first, second, data[:1], size=(2, 1), margin=0, measures=("loss",)).values["loss"][
        0, 1
    ].item() == pytest.approx(expected.item())
    assert found.values["loss"].isfinite().all()
    assert torch.equal(network.weight, before)


class WithPlainTensors(nn.Module):
    """Weights that hooks compute before each call, of a pruned layer and of a recurrent one, and tensors of its own."""

    def __init__(self):
        super().__init__()
        self.first = prune.l1_unstructured(nn.Linear(4, 5), "weight", 0.5)
        self.second = spectral_norm(nn.Linear(5, 5))
        self.recurrent = prune.l1_unstructured(nn.LSTM(5, 3, batch_first=True), "weight_ih_l0", 0.5)
        self.calls = torch.zeros(())

    def forward(self, x):
        self.calls += 1
        self.last = self.second(torch.relu(self.first(x)))
        return self.recurrent(self.last[:, None])[0][:, -1]


def plain_tensors(network):
    tensors = {
        (path, name): value
        for path, part in network.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, torch.Tensor)
    }
    return {**tensors, **dict(enumerate(network.recurrent._flat_weights))}


@pytest.mark.parametrize("kind", ["plane", "trace"])
def test_tensors_that_are_neither_weights_nor_buffers(kind):
    torch.manual_seed(0)
    network = WithPlainTensors()
    first = {name: value.clone() for name, value in network.state_dict().items()}
    second = {name: value if "mask" in name else value + 0.1 for name, value in first.items()}
    data = [(torch.randn(5, 4), torch.randint(3, (5,)))]
    before = plain_tensors(network)
    values = {name: tensor.detach().clone() for name, tensor in before.items()}
    if kind == "plane":
        loss_plane(network, first, second, data, size=(3, 2))
    else:
        hessian_trace(network, data, samples=2)
    now = plain_tensors(network)
    assert now.keys() == before.keys()
    assert all(now[name] is tensor and torch.equal(tensor, values[name]) for name, tensor in before.items())


class Scaled(nn.Module):
    """A network with a buffer whose entries are the same memory."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
        self.register_buffer("scale", torch.ones(1, 1, dtype=torch.float64).expand(1, 4))
        self.register_buffer("number", torch.tensor(2).expand(3))

    def forward(self, x):
        return self.fc(x * self.scale * self.number[0])


def test_buffers_whose_entries_are_the_same_memory():
    torch.manual_seed(0)
    network = Scaled()
    first = {name: value.clone() for name, value in network.state_dict().items()}
    second = {name: 3 * value for name, value in first.items()}
    data = [(torch.randn(5, 4, dtype=torch.float64), torch.randint(3, (5,)))]
    scale = network.scale
    plane = loss_plane(network, first, second, data, size=(3, 1), margin=0, measures=("loss",))
    by_hand = []
    for state in (first, second):
        scores = F.linear(data[0][0] * state["scale"] * state["number"][0], state["fc.0.weight"], state["fc.0.bias"])
        scores = F.linear(scores.relu(), state["fc.2.weight"], state["fc.2.bias"])
        by_hand.append(F.cross_entropy(scores, data[0][1]).item())
    assert plane.values["loss"][0, [0, 2]].tolist() == pytest.approx(by_hand, rel=1e-12)
    assert network.scale is scale
    assert scale.tolist() == [[1.0] * 4]
    assert network.number.tolist() == [2] * 3
    second["scale"][0, 0] = 0.0
    with pytest.raises(ValueError, match="same memory in `module` but got different ones in 'scale'"):
        loss_plane(network, first, second, data, size=(3, 1))


def test_other_analyses_of_a_network_with_such_buffers():
    network, data = Scaled(), [(torch.randn(5, 4, dtype=torch.float64), torch.randint(3, (5,)))]
    psp_gradient_parts(network, data[0][0])
    hessian_trace(network, data, samples=2)
    constant_units(network, data)
    assert network.training
    assert torch.is_grad_enabled()
