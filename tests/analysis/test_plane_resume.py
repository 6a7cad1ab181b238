"""A plane that was cut short goes on where it was, and no other plane takes its points."""

from functools import partial
from types import FunctionType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_psp.analysis import loss_plane
from lightning_psp.analysis.identity import identity_of
from tests.support.analysis.planes import MLP, batches, solutions

SIZE = (3, 2)


@pytest.fixture
def scene():
    network = MLP().double()
    return network, *solutions(network), batches()


class CutShort:
    """The default loss, with Ctrl-C at the n-th call; counts its calls."""

    def __init__(self, call=None):
        self.calls, self._last = 0, call

    def __call__(self, module, batch):
        self.calls += 1
        if self.calls == self._last:
            raise KeyboardInterrupt
        return F.cross_entropy(module(batch[0]), batch[1])


def assert_equal(found, expected):
    for measure, value in expected.values.items():
        assert torch.equal(found.values[measure], value)
    assert found.layers.keys() == expected.layers.keys()
    for measure, layers in expected.layers.items():
        assert all(torch.equal(found.layers[measure][layer], value) for layer, value in layers.items())


@pytest.mark.parametrize("by_layer", [False, True])
def test_resumed_is_uninterrupted(scene, tmp_path, by_layer):
    whole = loss_plane(*scene, size=SIZE, by_layer=by_layer)
    path = tmp_path / "points.pt"
    settings = {"size": SIZE, "by_layer": by_layer, "path": path}
    with pytest.raises(KeyboardInterrupt):
        loss_plane(*scene, loss=CutShort(8), **settings)  # in the third point of six, of three batches each
    assert [file.name for file in tmp_path.iterdir()] == ["points.pt"]
    rest = CutShort()
    found = loss_plane(*scene, loss=rest, **settings)
    assert rest.calls == 4 * 3
    assert_equal(found, whole)
    again = CutShort()
    assert_equal(loss_plane(*scene, loss=again, **settings), whole)
    assert again.calls == 0


def others(first, second, data):
    return {
        "first": {"first": {**first, "fc1.bias": first["fc1.bias"] + 1e-12}},
        "second": {"second": {**second, "fc3.bias": second["fc3.bias"] * 2}},
        "data": {"data": data[:2]},
        "loss": {"loss": lambda module, batch: F.cross_entropy(module(batch[0]), batch[1])},
        "measures": {"measures": ("loss", "z2")},
        "size": {"size": (2, 3)},
        "margin": {"margin": 0.5},
        "direction": {"direction": "filter"},
        "seed": {"seed": 1},
        "batch_norm": {"batch_norm": "reestimate"},
        "by_layer": {"by_layer": True},
        "masks": {"masks": {"fc1.weight": torch.ones(6, 4, dtype=torch.bool)}},
    }


@pytest.mark.parametrize("argument", list(others({"fc1.bias": 0}, {"fc3.bias": 0}, [])))
def test_another_computation_is_refused(scene, tmp_path, argument):
    network, first, second, data = scene
    arguments = {"first": first, "second": second, "data": data, "size": SIZE, "measures": ("loss", "error")}
    path = tmp_path / "points.pt"
    loss_plane(network, **arguments, path=path)
    before = path.read_bytes()
    other = {**arguments, **others(first, second, data)[argument]}
    with pytest.raises(ValueError, match=f"begun with other values of `{argument}`. Use another file"):
        loss_plane(network, **other, path=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("part", ["nonlinearity", "buffer"])
def test_another_network_of_the_same_weights_is_refused(scene, tmp_path, part):
    class Scaled(nn.Sequential):
        def __init__(self, nonlinearity, scale):
            super().__init__(nn.Linear(4, 3), nonlinearity)
            self.register_buffer("scale", torch.tensor(scale), persistent=False)

        def forward(self, x):
            return super().forward(x * self.scale)

    others = {"nonlinearity": Scaled(nn.Tanh(), 1.0), "buffer": Scaled(nn.ReLU(), 2.0)}
    network, data, path = Scaled(nn.ReLU(), 1.0), batches(dtype=torch.float32), tmp_path / "points.pt"
    first, second = solutions(network)
    settings = {"size": (2, 1), "measures": ("loss",), "path": path}
    found = loss_plane(network, first, second, data, **settings)
    with pytest.raises(ValueError, match="begun with other values of `module`"):
        loss_plane(others[part], first, second, data, **settings)
    assert_equal(loss_plane(Scaled(nn.ReLU(), 1.0), first, second, data, **settings), found)


def test_what_a_process_that_was_killed_has_left_is_no_hindrance(scene, tmp_path):
    path = tmp_path / "points.pt"
    whole = loss_plane(*scene, size=(2, 1), path=path)
    for name in ("points.pt.8.unfinished", "points.pt.process1.8.unfinished"):
        (tmp_path / name).write_bytes(b"PK")
    assert_equal(loss_plane(*scene, size=(2, 1), path=path), whole)


def test_values_of_the_same_shape_are_other_data(scene, tmp_path):
    network, first, second, data = scene
    loss_plane(network, first, second, data, size=(2, 1), path=tmp_path / "points.pt")
    data = [(x + 1, labels) for x, labels in data]
    with pytest.raises(ValueError, match="other values of `data`"):
        loss_plane(network, first, second, data, size=(2, 1), path=tmp_path / "points.pt")


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.jagged])
def test_inputs_of_any_layout(scene, tmp_path, layout):
    network, first, second, data = scene

    def as_layout(x):
        return torch.nested.nested_tensor([*x], layout=layout) if layout == torch.jagged else x.to_sparse(layout=layout)

    def loss(module, batch):
        x = batch[0].to_padded_tensor(0.0) if batch[0].is_nested else batch[0].to_dense()
        return F.cross_entropy(module(x), batch[1])

    settings = {"loss": loss, "size": (2, 1), "measures": ("loss",), "path": tmp_path / "points.pt"}
    found = loss_plane(network, first, second, [(as_layout(x), labels) for x, labels in data], **settings)
    assert_equal(found, loss_plane(*scene, size=(2, 1), measures=("loss",)))
    again = loss_plane(network, first, second, [(as_layout(x), labels) for x, labels in data], **settings)
    assert_equal(again, found)
    with pytest.raises(ValueError, match="other values of `data`"):
        loss_plane(network, first, second, [(as_layout(x + 1), labels) for x, labels in data], **settings)


def weighted(module, batch, weight=1.0):
    return weight * F.cross_entropy(module(batch[0]), batch[1])


def times(weight):
    return lambda module, batch: weight * weighted(module, batch)


def of(function):
    return lambda module, batch: function(module(batch[0]), batch[1])


def added(one, other):
    return lambda module, batch: one(module, batch) + other(module, batch)


def by_class(weight):
    return lambda module, batch: F.cross_entropy(module(batch[0]), batch[1], weight)


def elsewhere(factor):
    """A loss whose factor, and function, are found in the module that it stands in."""
    scope = {"__name__": "losses", "factor": factor, "weighted": weighted}
    exec("def scaled(value):\n    return factor * value\n", scope)
    exec("def loss(module, batch):\n    return scaled(weighted(module, batch))\n", scope)
    return scope["loss"]


class Weighted:
    def __init__(self, weight):
        self.weight = weight

    def loss(self, module, batch):
        return weighted(module, batch, self.weight)


LOSSES = {
    "code": (lambda module, batch: weighted(module, batch), lambda module, batch: weighted(module, batch) + 1),
    "number": (lambda module, batch: 2 * weighted(module, batch), lambda module, batch: 3 * weighted(module, batch)),
    "partial": (partial(weighted, weight=2.0), partial(weighted, weight=3.0)),
    "closure": (times(2.0), times(3.0)),
    "inner function": (
        lambda module, batch: (lambda: 2 * weighted(module, batch))(),
        lambda module, batch: (lambda: 3 * weighted(module, batch))(),
    ),
    "method": (Weighted(2.0).loss, weighted),
    "function in a closure": (of(F.cross_entropy), of(F.multi_margin_loss)),
    "partial of a closure": (partial(of(F.cross_entropy)), partial(of(F.multi_margin_loss))),
    "tensor in a closure": tuple(by_class(torch.tensor([1.0, weight, 1.0]).double()) for weight in (1.0, 2.0)),
    "two of one function": tuple(added(times(2.0), times(weight)) for weight in (3.0, 4.0)),
    "value of a module": (elsewhere(2.0), elsewhere(3.0)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_another_loss_is_refused_also_under_the_same_name(scene, tmp_path, name):
    settings = {"size": (2, 1), "measures": ("loss",), "path": tmp_path / "points.pt"}
    one, other = LOSSES[name]
    found = loss_plane(*scene, loss=one, **settings)
    with pytest.raises(ValueError, match="begun with other values of `loss`"):
        loss_plane(*scene, loss=other, **settings)
    assert_equal(loss_plane(*scene, loss=one, **settings), found)


def defined(constant):
    """A loss with a set in its code, defined anew."""
    scope = {"__name__": "losses"}
    exec("def loss(module, batch):\n    return [module in {0, 8}, lambda: batch]", scope)
    code = scope["loss"].__code__
    constants = tuple(constant if isinstance(each, frozenset) else each for each in code.co_consts)
    assert constant in constants
    return FunctionType(code.replace(co_consts=constants), scope)


def test_a_loss_is_known_again_in_another_run():
    """There it lies elsewhere, and the order of a set in its code is another where it is one of strings."""
    one, other = frozenset([0, 8]), frozenset([8, 0])
    assert [*one] != [*other]
    losses = [defined(one), defined(other)]
    assert identity_of(losses[0]) == identity_of(losses[1])


def test_a_loss_of_a_weight_that_is_moved_is_known_again(scene, tmp_path):
    network, settings = scene[0], {"size": (2, 1), "measures": ("loss",), "path": tmp_path / "points.pt"}
    weight = network.fc1.weight

    def loss(module, batch):
        return F.cross_entropy(module(batch[0]), batch[1]) + weight.square().sum()

    found = loss_plane(*scene, loss=loss, **settings)
    nn.init.zeros_(weight)
    assert_equal(loss_plane(*scene, loss=loss, **settings), found)


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_another_file_is_refused(scene, tmp_path, content):
    path = tmp_path / "other.pt"
    path.write_bytes(content or b"")
    if content is None:
        torch.save({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"`path` to be a file of `loss_plane`"):
        loss_plane(*scene, size=SIZE, path=path)


def test_a_folder_that_is_not_there_is_told_before_the_first_point(scene, tmp_path):
    loss = CutShort()
    with pytest.raises(ValueError, match=r"`path` to be a file in a folder that is there"):
        loss_plane(*scene, loss=loss, size=SIZE, path=tmp_path / "missing" / "points.pt")
    assert loss.calls == 0
