"""Planes through two solutions: the points, and what is measured there, against formulas in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_psp.analysis import LossPlane, loss_plane
from tests.support.analysis.planes import MLP, batches, measures_of_mlp, solutions, states_of

ALL = ("loss", "error", "z2", "entropy", "entropy2")


class Visits:
    """A loss that notes the state of the network, once a point."""

    def __init__(self, data):
        self.states, self._first = [], data[0][0]

    def __call__(self, module, batch):
        if torch.equal(batch[0], self._first):
            self.states.append(states_of(module))
        return F.cross_entropy(module(batch[0]), batch[1])


def as_vector(state, other=None):
    return torch.cat([(value if other is None else value - other[name]).flatten() for name, value in state.items()])


@pytest.fixture(scope="module")
def plane():
    """Everything about one plane."""
    network, data = MLP().double(), batches()
    first, second = solutions(network)
    visits = Visits(data)
    found = loss_plane(network, first, second, data, loss=visits, measures=ALL, size=(7, 5), by_layer=True)
    return found, visits.states, first, second, data


def test_grid(plane):
    found = plane[0]
    assert found.x.tolist() == [-0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25]
    assert found.y.tolist() == [-0.75, -0.375, 0.0, 0.375, 0.75]
    assert found.x.dtype == found.y.dtype == torch.float64
    assert list(found.values) == list(ALL)
    assert all(value.shape == (5, 7) and value.dtype == torch.float64 for value in found.values.values())


@pytest.mark.parametrize("size", [(7, 3), (13, 1), (25, 25), (4, 2)])
@pytest.mark.parametrize("margin", [0.0, 0.1, 0.3, 0.25, 1.0])
def test_solutions_are_exact_points_of_every_grid_that_has_them(size, margin):
    network = nn.Linear(1, 2)
    first, second = solutions(network)
    data = [(torch.ones(1, 1), torch.tensor([1]))]
    found = loss_plane(network, first, second, data, measures=("loss",), size=size, margin=margin)
    steps = (size[0] - 1) / (1 + 2 * margin)
    if abs(steps * margin - round(steps * margin)) < 1e-6:
        assert {0.0, 1.0} <= set(found.x.tolist())
    assert (0.0 in found.y.tolist()) == (size[1] % 2 == 1)
    assert found.x.tolist() == pytest.approx(torch.linspace(-margin, 1 + margin, size[0], dtype=torch.float64).tolist())


def test_weights_are_those_of_the_plane(plane):
    found, states, first, second, _ = plane
    points = list(itertools.product(found.y.tolist(), found.x.tolist()))
    assert len(states) == len(points)
    difference = as_vector(second, first)
    direction = as_vector(states[-1], first) / 0.75 - difference * (1.25 / 0.75)  # of the last corner
    assert abs(direction @ difference) < 1e-12 * difference.norm() ** 2
    assert direction.norm().item() == pytest.approx(difference.norm().item(), rel=1e-12)
    for (y, x), state in zip(points, states, strict=True):
        expected = as_vector(first) + x * difference + y * direction
        torch.testing.assert_close(as_vector(state), expected, rtol=1e-12, atol=1e-12)


def test_every_measure_at_every_point(plane):
    found, states, _, _, data = plane
    for number, state in enumerate(states):
        expected = measures_of_mlp(state, data)
        for measure in ALL:
            value = found.values[measure].flatten()[number].item()
            assert value == pytest.approx(expected[measure], rel=1e-12, abs=1e-12), (measure, number)


def test_layers(plane):
    found = plane[0]
    assert {measure: list(layers) for measure, layers in found.layers.items()} == {
        "z2": ["fc1", "fc2", "fc3"],
        "entropy": ["fc1", "fc2"],
        "entropy2": ["fc1", "fc2"],
    }
    for measure, layers in found.layers.items():
        torch.testing.assert_close(torch.stack([*layers.values()]).mean(0), found.values[measure])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("direction", ["orthogonal", "filter"])
def test_solutions_to_the_digit(dtype, direction):
    network, data = MLP().to(dtype), batches(dtype=dtype)
    first, second = solutions(network)
    visits = Visits(data)
    loss_plane(
        network, first, second, data, loss=visits, measures=("loss",), size=(4, 3), margin=1, direction=direction
    )
    for state, end in ((visits.states[5], first), (visits.states[6], second)):
        for name, value in state.items():
            assert torch.equal(value.view(torch.uint8), end[name].view(torch.uint8)), name


def test_line():
    network, data = MLP().double(), batches()
    first, second = solutions(network)
    visits = Visits(data)
    found = loss_plane(network, first, second, data, loss=visits, size=(5, 1), margin=0.5)
    assert found.y.tolist() == [0.0]
    for x, state in zip((-0.5, 0.0, 0.5, 1.0, 1.5), visits.states, strict=True):
        torch.testing.assert_close(as_vector(state), as_vector(first) + x * as_vector(second, first))
    expected = [measures_of_mlp(state, data)["entropy"] for state in visits.states]
    assert found.values["entropy"].tolist() == [pytest.approx(expected)]
    whole = loss_plane(network, first, second, data, size=(5, 3), margin=0.5)
    for measure, value in found.values.items():
        assert torch.equal(value[0], whole.values[measure][1])


def test_filters_are_scaled_to_those_of_the_first():
    network, data = nn.Sequential(nn.Conv1d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(9, 3)).double(), batches()
    data = [(x.unsqueeze(1), labels) for x, labels in data]
    first, second = solutions(network)
    visits = Visits(data)
    loss_plane(network, first, second, data, loss=visits, size=(2, 2), margin=0.5, direction="filter")
    for name, value in visits.states[3].items():  # x = 1.5, y = 1
        moved = value - (first[name] + 1.5 * (second[name] - first[name]))
        if name.endswith("bias"):
            assert moved.abs().max() < 1e-14
            continue
        rows, difference = moved.flatten(1), (second[name] - first[name]).flatten(1)
        torch.testing.assert_close(rows.norm(dim=1), first[name].flatten(1).norm(dim=1))
        assert ((rows * difference).sum(1).abs() < 1e-12 * rows.norm(dim=1) * difference.norm(dim=1)).all()


def test_seed_chooses_the_direction():
    network, data = MLP(), batches(dtype=torch.float32)
    first, second = solutions(network)
    settings = {"measures": ("loss",), "size": (2, 3)}
    found = [loss_plane(network, first, second, data, seed=seed, **settings).values["loss"] for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0][1], found[2][1])
    assert not torch.equal(found[0], found[2])


def test_masks_keep_the_direction_within_the_weights_that_stay():
    network, data = MLP().double(), batches()
    first, second = solutions(network)
    masks = {name: torch.rand(network.state_dict()[name].shape) < 0.4 for name in ("fc1.weight", "fc3.weight")}
    masks["fc2.bias"] = torch.zeros(5, dtype=torch.bool)
    for direction in ("orthogonal", "filter"):
        visits = Visits(data)
        loss_plane(network, first, second, data, loss=visits, size=(2, 2), masks=masks, direction=direction)
        difference = as_vector(second, first)
        moved = {name: value - visits.states[1][name] for name, value in visits.states[3].items()}
        for name, mask in masks.items():
            assert not moved[name][~mask].any()
        assert moved["fc1.weight"].any()
        assert moved["fc2.weight"].all()
        assert abs(as_vector(moved) @ difference) < 1e-12 * difference.norm() ** 2
        if direction == "orthogonal":
            assert (as_vector(moved).norm() / difference.norm()).item() == pytest.approx(1.5)


def test_saved_and_loaded(plane, tmp_path):
    found = plane[0]
    found.save(tmp_path / "plane.pt")
    loaded = LossPlane.load(tmp_path / "plane.pt")
    assert torch.equal(loaded.x, found.x)
    assert torch.equal(loaded.y, found.y)
    assert all(torch.equal(loaded.values[measure], found.values[measure]) for measure in ALL)
    assert torch.equal(loaded.layers["entropy"]["fc2"], found.layers["entropy"]["fc2"])
