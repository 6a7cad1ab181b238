"""Planes of networks with tied weights, integer buffers, several passes, and losses of their own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_psp.analysis import loss_plane
from tests.support.analysis.planes import CLASSES, MLP, batches, entropy, solutions, states_of
from tests.support.networks import SharedWeights

ENDS = {"size": (2, 1), "margin": 0}


class Tied(nn.Module):
    """A weight that two layers have."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.fc2.weight = self.fc1.weight

    def forward(self, x):
        return self.head(F.relu(self.fc2(F.relu(self.fc1(x)))))


def test_tied_weights_are_moved_once():
    network, data = Tied().double(), batches()
    first, second = ({**state, "fc2.weight": state["fc1.weight"]} for state in solutions(network))
    seen = []

    def loss(module, batch):
        seen.append(states_of(module))
        return F.cross_entropy(module(batch[0]), batch[1])

    found = loss_plane(network, first, second, data[:1], loss=loss, size=(2, 2), margin=0)
    once = [name for name in first if name != "fc2.weight"]
    difference, direction = (
        torch.cat([side[name].flatten() for name in once])
        for side in (
            {name: seen[1][name] - seen[0][name] for name in once},
            {name: seen[2][name] - seen[0][name] for name in once},
        )
    )
    assert abs(difference @ direction) < 1e-12 * difference.norm() ** 2
    assert direction.norm().item() == pytest.approx(difference.norm().item())
    torch.testing.assert_close(
        seen[1]["fc1.weight"] - seen[0]["fc1.weight"], second["fc1.weight"] - first["fc1.weight"]
    )
    assert network.fc1.weight is network.fc2.weight
    without = [{name: value for name, value in state.items() if name != "fc1.weight"} for state in (first, second)]
    assert torch.equal(loss_plane(network, *without, data, **ENDS).x, torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert found.values["loss"].isfinite().all()
    first["fc2.weight"] = first["fc1.weight"] + 1
    with pytest.raises(ValueError, match=r"different ones of 'fc1.weight' and 'fc2.weight'"):
        loss_plane(network, first, second, data)


def test_weights_in_the_same_memory_are_refused():
    network = Tied()
    network.fc2.weight = nn.Parameter(network.fc1.weight.data)
    states = [{**state, "fc2.weight": state["fc1.weight"]} for state in solutions(network)]
    for size in ((2, 2), (2, 1)):
        with pytest.raises(ValueError, match=r"'fc2\.weight' lies in the memory of 'fc1\.weight'"):
            loss_plane(network, *states, batches(dtype=torch.float32), size=size)


def test_integer_buffers_are_those_of_the_nearer_solution():
    class Permuted(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, CLASSES)
            self.register_buffer("order", torch.arange(4))
            self.register_buffer("taken", torch.ones(4, dtype=torch.bool))
            self.register_buffer("table", torch.ones(4), persistent=False)

        def forward(self, x):
            return self.fc(x[:, self.order] * self.taken * self.table)

    network, data = Permuted(), batches(dtype=torch.float32)
    first, second = solutions(network)
    first["order"], second["order"] = torch.tensor([3, 2, 1, 0]), torch.tensor([1, 0, 3, 2])
    first["taken"], second["taken"] = torch.tensor([True, False, True, True]), torch.tensor([True, True, True, False])
    found = loss_plane(network, first, second, data, measures=("loss", "error"), **ENDS)
    for column, state in enumerate((first, second)):
        network.load_state_dict(state)
        losses = [F.cross_entropy(network(x), labels, reduction="none") for x, labels in data]
        assert found.values["loss"][0, column].item() == pytest.approx(torch.cat(losses).mean().item(), rel=1e-6)


def test_infinite_buffers_stay():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, CLASSES)
            self.register_buffer("mask", torch.tensor([0.0, 0.0, -torch.inf]))

        def forward(self, x):
            return self.fc(x) + self.mask

    network, data = Masked(), [(x, labels % 2) for x, labels in batches(dtype=torch.float32)]
    first, second = solutions(network)
    first["mask"], second["mask"] = torch.tensor([0.0, 1.0, -torch.inf]), torch.tensor([0.0, 3.0, -torch.inf])
    found = loss_plane(network, first, second, data, measures=("loss",), size=(3, 1), margin=0)
    scores = data[0][0] @ (first["fc.weight"] + second["fc.weight"]).T / 2 + (first["fc.bias"] + second["fc.bias"]) / 2
    one = loss_plane(network, first, second, data[:1], measures=("loss",), size=(3, 1), margin=0)
    expected = F.cross_entropy(scores[:, :2] + torch.tensor([0.0, 2.0]), data[0][1])
    assert one.values["loss"][0, 1].item() == pytest.approx(expected.item(), rel=1e-5)
    assert found.values["loss"].isfinite().all()


def test_a_buffer_that_is_infinite_in_one_solution_alone_is_that_of_the_nearer():
    class Ranged(nn.Module):
        """Keeps the range of what it has seen, which is empty at first."""

        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, CLASSES)
            self.register_buffer("low", torch.tensor(torch.inf))

        def forward(self, x):
            return self.fc(x) + self.low.clamp(max=7.0) * torch.arange(CLASSES)

    network, data = Ranged(), batches(dtype=torch.float32)
    first, second = solutions(network)
    first["low"], second["low"] = torch.tensor(torch.inf), torch.tensor(2.0)
    for one, other in ((first, second), (second, first)):
        found = loss_plane(network, one, other, data, measures=("loss",), size=(7, 1), margin=0.25)
        for place, x in enumerate(found.x.tolist()):
            low = (one if x < 0.5 else other)["low"].clamp(max=7.0)
            weight, bias = (torch.lerp(one[name], other[name], x) for name in ("fc.weight", "fc.bias"))
            losses = [
                F.cross_entropy(inputs @ weight.T + bias + low * torch.arange(CLASSES), labels, reduction="sum")
                for inputs, labels in data
            ]
            assert found.values["loss"][0, place].item() == pytest.approx(sum(losses).item() / 23, rel=1e-5)


def test_empty_batches_weigh_nothing():
    network, data = MLP(), batches(dtype=torch.float32)
    first, second = solutions(network)
    empty = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    found = loss_plane(network, first, second, [data[0], empty, *data[1:]], batch_norm="reestimate", **ENDS)
    expected = loss_plane(network, first, second, data, **ENDS)
    for measure, value in expected.values.items():
        assert torch.equal(found.values[measure], value)


@pytest.mark.parametrize("way", ["function", "method", "inner"])
def test_compiled_networks(way, fresh_compiler):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = MLP().double()

        def forward(self, x):
            return self.network(x)

    network, data = Outer(), batches()
    first, second = solutions(network)
    expected = loss_plane(network, first, second, data, size=(3, 3))
    if way == "function":
        network = torch.compile(network, backend="eager")
        first, second = ({f"_orig_mod.{name}": value for name, value in state.items()} for state in (first, second))
    elif way == "method":
        network.compile(backend="eager")
    else:
        network.network.compile(backend="eager")
    network(data[0][0])
    found = loss_plane(network, first, second, data, size=(3, 3))
    for measure, value in expected.values.items():
        torch.testing.assert_close(found.values[measure], value, rtol=1e-12, atol=1e-12)


def test_passes_are_further_observations():
    network = SharedWeights().double()
    data = [(torch.randn(7, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2, 0]))]
    first, second = solutions(network)
    found = loss_plane(network, first, second, data, measures=("entropy", "z2"), by_layer=True, **ENDS)
    state, rows = data[0][0], []
    for _ in range(3):
        rows.append(state @ first["shared.weight"].T + first["shared.bias"])
        state = rows[-1].tanh()
    expected = entropy(torch.cat(rows), data[0][1].repeat(3))
    assert found.layers["entropy"]["shared"][0, 0].item() == pytest.approx(expected, rel=1e-12)
    assert found.layers["z2"]["shared"][0, 0].item() == pytest.approx(torch.cat(rows).square().mean().item(), rel=1e-12)


def test_parts_are_further_units():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.both, self.head = nn.Linear(4, 6), nn.Linear(3, CLASSES)

        def forward(self, x):
            gate, value = self.both(x).chunk(2, 1)
            return self.head(torch.sigmoid(gate) * torch.tanh(value))

    network, data = Gated().double(), batches(9, 9)
    first, second = solutions(network)
    found = loss_plane(network, first, second, data, measures=("entropy",), by_layer=True, **ENDS)
    z = data[0][0] @ first["both.weight"].T + first["both.bias"]
    assert found.layers["entropy"]["both"][0, 0].item() == pytest.approx(entropy(z, data[0][1]), rel=1e-12)


def test_entropy_of_layers_that_do_not_go_with_the_labels_is_refused():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.head = nn.Linear(2, 2), nn.Linear(4, CLASSES)

        def forward(self, x):
            return self.head(F.relu(self.fc(x.view(-1, 2))).view(len(x), 4))

    network, data = Rows(), batches(dtype=torch.float32)
    first, second = solutions(network)
    with pytest.raises(
        ValueError, match=r"\[20, 2\] of layer 'fc' do not go with 10 class labels. Leave the entropies"
    ):
        loss_plane(network, first, second, data)
    assert loss_plane(network, first, second, data, measures=("loss", "z2"), **ENDS).values["z2"].isfinite().all()


def test_pictures_of_classes():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, CLASSES, 1))
    data = [(torch.randn(3, 1, 5, 5), torch.randint(0, CLASSES, (3, 5, 5)))]
    first, second = solutions(network)
    found = loss_plane(network, first, second, data, measures=("loss", "error"), **ENDS)
    network.load_state_dict(second)
    wrong = network(data[0][0]).argmax(1) != data[0][1]
    assert found.values["error"][0, 1].item() == pytest.approx(wrong.double().mean().item())
    with pytest.raises(ValueError, match=r"class labels \[3\], one a sample, for an entropy but got \[3, 5, 5\]"):
        loss_plane(network, first, second, data)


def test_loss_of_a_lightning_module():
    pytest.importorskip("lightning.pytorch")
    from lightning.pytorch import LightningModule

    class Classifier(LightningModule):
        def __init__(self):
            super().__init__()
            self.network = MLP()

        def forward(self, x):
            return self.network(x)

        def step(self, batch):
            return F.cross_entropy(self(batch["x"]), batch["y"], label_smoothing=0.1)

    module = Classifier().double()
    data = [{"x": x, "y": labels} for x, labels in batches()]
    first, second = solutions(module)
    found = loss_plane(
        module, first, second, data, loss=Classifier.step, measures=("loss", "z2"), by_layer=True, **ENDS
    )
    assert list(found.layers["z2"]) == ["network.fc1", "network.fc2", "network.fc3"]
    module.load_state_dict(second)
    x, labels = (torch.cat([batch[key] for batch in data]) for key in ("x", "y"))
    expected = F.cross_entropy(module(x), labels, label_smoothing=0.1).item()
    assert found.values["loss"][0, 1].item() == pytest.approx(expected, rel=1e-12)
    assert module._trainer is None


def test_loss_of_own_gives_error_and_entropy_of_the_call_in_it():
    network, data = MLP().double(), batches()
    first, second = solutions(network)
    found = loss_plane(
        network,
        first,
        second,
        data,
        loss=lambda net, batch: F.nll_loss(F.log_softmax(net(batch[0]), 1), batch[1]),
        **ENDS,
    )
    expected = loss_plane(network, first, second, data, **ENDS)
    for measure, value in expected.values.items():
        torch.testing.assert_close(found.values[measure], value)


def test_weights_in_autocast_are_those_of_the_point():
    """Autocast keeps weights in another precision, which are not to be used again at the next point."""
    network, data = MLP(), batches(dtype=torch.float32)
    first, second = solutions(network)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network(data[0][0])
        found = loss_plane(network, first, second, data, measures=("loss",), **ENDS)
        after = network(data[0][0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(after, network(data[0][0]))
    for column, state in enumerate((first, second)):
        other = MLP()
        other.load_state_dict(state)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            losses = [F.cross_entropy(other(x), labels, reduction="none") for x, labels in data]
        assert found.values["loss"][0, column].item() == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)


def test_complex_weights():
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, CLASSES, dtype=torch.complex128))

        def forward(self, x):
            return (torch.fft.rfft(x) @ self.weight).real

    torch.manual_seed(0)
    network, data = Spectral(), batches()
    first = {"weight": torch.randn(3, CLASSES, dtype=torch.complex128)}
    second = {"weight": torch.randn(3, CLASSES, dtype=torch.complex128)}
    seen = []

    def loss(module, batch):
        seen.append(module.weight.detach().clone())
        return F.cross_entropy(module(batch[0]), batch[1])

    loss_plane(network, first, second, data[:1], loss=loss, measures=("loss",), size=(2, 2), margin=0)
    difference, direction = second["weight"] - first["weight"], seen[2] - seen[0]
    assert abs((difference.conj() * direction).sum().real) < 1e-12
    assert direction.norm().item() == pytest.approx(difference.norm().item())
    assert direction.imag.all()


def test_biases_of_complex_numbers_are_not_moved_by_filters():
    network, data = nn.Linear(4, CLASSES, dtype=torch.complex64), batches(dtype=torch.float32)
    first, second = solutions(network)
    seen = []

    def loss(module, batch):
        seen.append(states_of(module))
        return module(batch[0].to(torch.complex64)).abs().mean()

    masks = {"weight": torch.arange(12).view(CLASSES, 4) % 4 > 0}
    settings = {"loss": loss, "measures": ("loss",), "size": (2, 2), "margin": 0, "masks": masks}
    loss_plane(network, first, second, data[:1], direction="filter", **settings)
    assert torch.equal(seen[0]["bias"], seen[2]["bias"])
    moved = torch.view_as_real(seen[2]["weight"] - seen[0]["weight"])
    difference = torch.view_as_real(second["weight"] - first["weight"])
    assert not moved[~masks["weight"]].any()
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), torch.view_as_real(first["weight"]).flatten(1).norm(dim=1))
    assert ((moved * difference).flatten(1).sum(1).abs() < 1e-5).all()


def test_nan_is_told():
    class Rooted(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.fc, self.head = nn.Parameter(torch.ones(())), nn.Linear(4, 4), nn.Linear(4, CLASSES)

        def forward(self, x):
            return self.head(F.relu(self.fc(x) * self.scale.sqrt()))

    network, data = Rooted(), batches(dtype=torch.float32)
    first, second = solutions(network)
    first["scale"], second["scale"] = torch.tensor(1.0), torch.tensor(-1.0)
    found = loss_plane(network, first, second, data, by_layer=True, **ENDS)
    assert found.values.pop("error")[0, 1].item() == 1.0
    for measure, value in found.values.items():
        assert value[0].isnan().tolist() == [False, True], measure
    for layer in found.layers["entropy"].values():
        assert layer[0].isnan().tolist() == [False, True]
