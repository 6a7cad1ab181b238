"""Planes of networks with batch norm, whose running statistics are kept or taken anew."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_psp import record_potentials
from lightning_psp.analysis import loss_plane
from lightning_psp.analysis.statistics import reestimate_statistics
from lightning_psp.metrics import MeanSquarePotential, PSPEntropy
from tests.support.analysis.planes import CLASSES, Normalised, batches, solutions, states_of

ENDS = {"size": (2, 1), "margin": 0}


def by_the_metrics(network, state, data):
    """The measures of a network with the metrics of this package, batch after batch."""
    network = copy.deepcopy(network)
    network.load_state_dict(state)
    network.eval()
    squares, entropies, losses, wrong = {}, {}, [], []
    for x, labels in data:
        with torch.no_grad(), record_potentials(network) as potentials:
            logits = network(x)
        losses.append(F.cross_entropy(logits, labels, reduction="none"))
        wrong.append(logits.argmax(1) != labels)
        with torch.no_grad(), record_potentials(network, output=False) as hidden:
            network(x)
        for layer, z in potentials.items():
            squares.setdefault(layer, MeanSquarePotential()).update(z)
        for layer, z in hidden.items():
            entropies.setdefault(layer, PSPEntropy(CLASSES)).update(z, labels)
    return {
        "loss": torch.cat(losses).mean().item(),
        "error": torch.cat(wrong).double().mean().item(),
        "z2": sum(metric.compute().item() for metric in squares.values()) / len(squares),
        "entropy": sum(metric.compute().item() for metric in entropies.values()) / len(entropies),
    }


def assert_ends_are_the_solutions(found, network, first, second, data, rel=1e-6):
    for column, state in enumerate((first, second)):
        expected = by_the_metrics(network, state, data)
        for measure, value in expected.items():
            assert found.values[measure][0, column].item() == pytest.approx(value, rel=rel), (measure, column)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kept_statistics_are_those_of_the_solutions(dtype):
    network, data = Normalised().to(dtype), batches(dtype=dtype)
    first, second = solutions(network)
    found = loss_plane(network, first, second, data, **ENDS)
    assert_ends_are_the_solutions(found, network, first, second, data)


class Shared(nn.Module):
    """A batch norm that each batch passes twice, and one that only long batches pass."""

    def __init__(self):
        super().__init__()
        self.fc, self.head = nn.Linear(4, 5), nn.Linear(5, CLASSES)
        self.bn, self.sometimes = nn.BatchNorm1d(5), nn.BatchNorm1d(5)

    def forward(self, x):
        first, second = self.fc(x), self.fc(3 * x + 1)
        z = self.bn(first) + self.bn(second)
        return self.head(torch.tanh(self.sometimes(z) if len(x) > 5 else z))


def test_statistics_taken_anew_are_the_mean_over_passes_and_over_batches_that_pass():
    torch.manual_seed(0)
    network = Shared().double()
    sizes = (4, 8, 6)
    data = [(torch.randn(size, 4, dtype=torch.float64), torch.randint(CLASSES, (size,))) for size in sizes]
    first, second = solutions(network)
    found = loss_plane(network, first, second, data, **ENDS, measures=("loss",), batch_norm="reestimate")
    for column, state in enumerate((first, second)):
        by_hand = copy.deepcopy(network)
        by_hand.load_state_dict(state)
        passes = [[by_hand.fc(x), by_hand.fc(3 * x + 1)] for x, _ in data]

        def mean(values, weights):
            return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)

        twice = [size for size in sizes for _ in range(2)]
        by_hand.bn.running_mean = mean([z.mean(0) for pair in passes for z in pair], twice).detach()
        by_hand.bn.running_var = mean([z.var(0) for pair in passes for z in pair], twice).detach()

        parameters = state["bn.weight"], state["bn.bias"]
        sums = [sum(F.batch_norm(z, None, None, *parameters, training=True) for z in pair) for pair in passes[1:]]
        by_hand.sometimes.running_mean = mean([z.mean(0) for z in sums], sizes[1:]).detach()
        by_hand.sometimes.running_var = mean([z.var(0) for z in sums], sizes[1:]).detach()
        by_hand.eval()
        losses = [F.cross_entropy(by_hand(x), labels) for x, labels in data]
        assert found.values["loss"][0, column].item() == pytest.approx(mean(losses, sizes).item(), rel=1e-10)


def test_statistics_of_an_instance_norm_are_those_of_batches_that_pass():
    norm = nn.InstanceNorm1d(2, track_running_stats=True).eval()
    data = [(5 + 3 * torch.randn(size, 2, 4),) for size in (6, 2, 4)]
    reestimate_statistics(norm, data, lambda module, batch: module(batch[0]) if len(batch[0]) > 2 else None)
    passed = torch.cat([data[0][0], data[2][0]])
    torch.testing.assert_close(norm.running_mean, passed.mean((0, 2)))
    torch.testing.assert_close(norm.running_var, passed.var(2).mean(0))


def test_a_batch_that_is_too_small_for_statistics():
    network, data = Normalised(), batches(dtype=torch.float32)
    one = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    alone = [(torch.randn(size, 4), torch.randint(3, (size,))) for size in (5, 1)]
    with pytest.raises(ValueError, match=r"A batch of 1 is too small .* Leave out the last batch"):
        loss_plane(one, *solutions(one), alone, measures=("loss",), batch_norm="reestimate")

    def loss(module, batch):
        raise ValueError("another one")

    with pytest.raises(ValueError, match=r"^another one$"):
        loss_plane(network, *solutions(network), data, loss=loss, measures=("loss",), batch_norm="reestimate")


def test_kept_statistics_are_interpolated_and_never_extrapolated():
    network, data = Normalised(), batches(dtype=torch.float32)
    first, second = solutions(network)
    second["bn.running_var"] = first["bn.running_var"] / 100  # extrapolated, negative from x = 1.02 on
    seen = []

    def loss(module, batch):
        seen.append(states_of(module))
        return F.cross_entropy(module(batch[0]), batch[1])

    found = loss_plane(network, first, second, data[:1], loss=loss, size=(9, 3), margin=0.5)
    assert all(value.isfinite().all() for value in found.values.values())
    for number, state in enumerate(seen):
        place = min(max(found.x[number % 9].item(), 0.0), 1.0)
        for name in ("bn.running_mean", "bn.running_var"):
            expected = first[name] + place * (second[name] - first[name])
            torch.testing.assert_close(state[name], expected)
        assert state["bn.num_batches_tracked"] == (1 if found.x[number % 9] < 0.5 else 2)


def test_statistics_taken_anew():
    network, data = Normalised().double(), batches()
    network.bn.momentum = 0.3
    first, second = solutions(network)
    first["bn.running_mean"] = torch.full((3,), torch.nan, dtype=torch.float64)
    found = loss_plane(network, first, second, data, batch_norm="reestimate", measures=("loss", "z2"), size=(3, 3))
    samples = sum(len(labels) for _, labels in data)
    for column, state in ((0, first), (2, second)):
        x = -0.25 if column == 0 else 1.25
        at = {name: first[name] + x * (second[name] - first[name]) for name in first}
        mean = variance = 0.0
        for inputs, _ in data:
            z = F.conv1d(inputs.unsqueeze(1), at["conv.weight"], at["conv.bias"])
            mean = mean + z.mean((0, 2)) * len(inputs) / samples
            variance = variance + z.var((0, 2), unbiased=True) * len(inputs) / samples
        losses, squares, outputs = [], 0.0, 0.0
        for inputs, labels in data:
            z = F.conv1d(inputs.unsqueeze(1), at["conv.weight"], at["conv.bias"])
            z = (z - mean[:, None]) / (variance[:, None] + 1e-5).sqrt()
            z = z * at["bn.weight"][:, None] + at["bn.bias"][:, None]
            logits = z.clamp(min=0).flatten(1) @ at["fc.weight"].T + at["fc.bias"]
            losses.append(F.cross_entropy(logits, labels, reduction="none"))
            squares, outputs = squares + z.square().sum().item(), outputs + logits.square().sum().item()
        assert state is not None
        assert found.values["loss"][1, column].item() == pytest.approx(torch.cat(losses).mean().item(), rel=1e-12)
        expected = (squares / (samples * 9) + outputs / (samples * CLASSES)) / 2
        assert found.values["z2"][1, column].item() == pytest.approx(expected, rel=1e-12)
    assert network.bn.momentum == 0.3
    assert not network.bn.running_mean.any()
    assert network.bn.training


def test_dropout_is_off_while_statistics_are_taken():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Dropout(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, CLASSES))
    data = batches(dtype=torch.float32)
    first, second = solutions(network)
    settings = {"batch_norm": "reestimate", "measures": ("loss",), **ENDS}
    found = loss_plane(network, first, second, data, **settings)
    network[0].p = 0.0
    assert torch.equal(found.values["loss"], loss_plane(network, first, second, data, **settings).values["loss"])


def test_resnet():
    models = pytest.importorskip("torchvision.models", exc_type=ImportError)
    torch.manual_seed(0)
    network = models.resnet18(num_classes=CLASSES)
    data = [(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])), (torch.randn(2, 3, 32, 32), torch.tensor([1, 2]))]
    first = states_of(network)
    second = {name: value * 0.9 if value.is_floating_point() else value + 1 for name, value in first.items()}
    found = loss_plane(network, first, second, data, by_layer=True, **ENDS)
    assert len(found.layers["z2"]) == 18
    assert list(found.layers["entropy"]) == [*found.layers["z2"]][:-1]
    assert_ends_are_the_solutions(found, network, first, second, data, rel=1e-4)
    anew = loss_plane(network, first, second, data, batch_norm="reestimate", measures=("loss",), **ENDS)
    assert anew.values["loss"].isfinite().all()
    assert not torch.allclose(anew.values["loss"], found.values["loss"])


@pytest.mark.gpu
@pytest.mark.parametrize("batch_norm", ["keep", "reestimate"])
@pytest.mark.parametrize("data_on_gpu", [False, True])
def test_an_accelerator_gives_what_a_processor_gives(batch_norm, data_on_gpu):
    network, data = Normalised().double(), batches()
    first, second = solutions(network)
    masks = {"fc.weight": torch.rand(CLASSES, 9) < 0.5}
    settings = {"size": (3, 3), "batch_norm": batch_norm, "by_layer": True, "masks": masks}
    expected = loss_plane(network, first, second, data, **settings)
    if data_on_gpu:
        data = [(x.cuda(), labels.cuda()) for x, labels in data]
    state = torch.cuda.get_rng_state()
    found = loss_plane(network.cuda(), first, second, data, **settings)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    for measure, value in expected.values.items():
        torch.testing.assert_close(found.values[measure], value, rtol=1e-9, atol=1e-12)
