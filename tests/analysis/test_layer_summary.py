"""The table of layers against values by hand."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from lightning_psp import layer_summary
from lightning_psp.analysis import SummarisedLayer


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4 * 36, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, images):
        hidden = functional.silu(self.norm(self.conv(images)), inplace=True)
        return self.head(self.drop(torch.tanh(self.fc(hidden.flatten(1)))))


class Cell(nn.Module):
    """Three parts of one layer enter two kinds of nonlinearity; the layer is evaluated twice."""

    def __init__(self):
        super().__init__()
        self.gates = nn.Linear(4, 12)
        self.head = nn.Linear(4, 2)

    def forward(self, inputs):
        for _ in range(2):
            first, second, third = self.gates(inputs).chunk(3, 1)
            inputs = torch.sigmoid(first) * torch.tanh(second) + torch.sigmoid(third)
        return self.head(inputs)


class Sine(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, inputs):
        return self.third(torch.relu(self.second(torch.sin(self.first(inputs)))))


def network(kind=Network):
    torch.manual_seed(0)
    return kind().double()


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.randn(5, 1, 8, 8, dtype=torch.float64)


def never_on(z):
    return sum(not any(value > 0 for value in unit) for unit in z.flatten(1).T.tolist()) / z[0].numel()


def test_rows_are_those_of_a_count_by_hand(images):
    module = network().eval()
    with torch.no_grad():
        conv = module.norm(module.conv(images))
        fc = module.fc(functional.silu(conv).flatten(1))
        head = module.head(torch.tanh(fc))
    expected = [
        ("norm", "silu", (5, 4, 6, 6), "hidden", conv),
        ("fc", "tanh", (5, 8), "hidden", fc),
        ("head", "output", (5, 3), "output", head),
    ]
    summary = layer_summary(module, images)
    assert len(summary) == 3
    for row, (name, nonlinearity, shape, kind, z) in zip(summary, expected, strict=True):
        assert row == SummarisedLayer(
            name, nonlinearity, shape, kind, pytest.approx(z.square().mean().item(), rel=1e-12), row.never_on, True
        )
        assert row.never_on == pytest.approx(never_on(z), abs=1e-12)
    assert summary.layers[1].never_on > 0
    assert summary.mean_square == pytest.approx(sum(z.square().mean().item() for *_, z in expected) / 3)
    assert summary.unseen == ""


@pytest.mark.parametrize("is_training", [True, False])
def test_the_network_and_random_numbers_are_left_as_they_were(images, is_training):
    module = network().train(is_training)
    before, generator = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    with torch.no_grad():
        layer_summary(module, images)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert [part.training for part in module.modules()] == [is_training] * 6
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not any(part._forward_hooks for part in module.modules())


def test_the_mode_is_the_networks_own(images):
    trained, evaluated = (layer_summary(network().train(mode), images) for mode in (True, False))
    assert trained.layers[0].mean_square == pytest.approx(1.0, rel=1e-3)  # batch norm
    assert evaluated.layers[0].mean_square != pytest.approx(1.0, rel=1e-3)


def test_parts_and_passes_make_one_row():
    module, inputs = network(Cell), torch.randn(3, 4, dtype=torch.float64)
    summary = layer_summary(module, inputs)
    with torch.no_grad():
        first = module.gates(inputs)
        parts = first.chunk(3, 1)
        second = module.gates(torch.sigmoid(parts[0]) * torch.tanh(parts[1]) + torch.sigmoid(parts[2]))
    z = torch.cat([first, second])
    assert [layer.name for layer in summary] == ["gates", "head"]
    assert summary.layers[0].nonlinearity == "sigmoid, tanh"
    assert summary.layers[0].mean_square == pytest.approx(z.square().mean().item(), rel=1e-12)
    assert summary.layers[0].never_on == pytest.approx(never_on(z))


def test_a_module_that_writes_its_activation_out_is_named_by_its_class():
    class Wave(nn.Module):
        def forward(self, inputs):
            return torch.sin(30 * inputs)

    module = nn.Sequential(nn.Linear(4, 3), Wave(), nn.Linear(3, 2)).double()
    assert [row.nonlinearity for row in layer_summary(module, torch.ones(2, 4).double())] == ["wave", "output"]


def test_frozen_layers_are_said_not_to_be_penalised(images):
    module = network()
    for part in (module.conv, module.norm):
        part.requires_grad_(False)
    assert [row.is_penalised for row in layer_summary(module, images)] == [False, True, True]


def test_a_network_that_is_frozen_as_a_whole_has_its_output_too(images):
    module = network()
    expected = layer_summary(module, images)
    module.requires_grad_(False)
    with torch.inference_mode():
        never_trained = copy.deepcopy(module)
    assert never_trained.conv.weight.is_inference()
    for each in (module, never_trained):
        found = layer_summary(each, images)
        assert [row.cells()[:-1] for row in found] == [row.cells()[:-1] for row in expected]
        assert found.mean_square == expected.mean_square
        assert not any(row.is_penalised for row in found)


def test_whether_a_layer_is_penalised_does_not_depend_on_where_it_is_asked():
    module = network()
    expected = layer_summary(module, torch.ones(2, 1, 8, 8, dtype=torch.float64))
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            images = torch.ones(2, 1, 8, 8, dtype=torch.float64)
            assert layer_summary(module, images).layers == expected.layers
            assert torch.is_inference_mode_enabled() == (context is torch.inference_mode)
    with torch.inference_mode():
        never_trained = network()
    assert not any(row.is_penalised for row in layer_summary(never_trained, images.clone()))


def test_layers_are_chosen_as_elsewhere(images):
    assert [row.name for row in layer_summary(network(), images, exclude=("fc",), output=False)] == ["norm"]
    with pytest.raises(ValueError, match="'nothing'"):
        layer_summary(network(), images, include=("nothing",))


def test_what_could_not_be_seen_is_said_in_the_table_and_not_warned_of():
    summary = layer_summary(network(Sine), torch.ones(3, 4, dtype=torch.float64))
    assert "activations=('torch.sin',)" in summary.unseen
    assert str(summary).endswith(summary.unseen)
    seen = layer_summary(network(Sine), torch.ones(3, 4, dtype=torch.float64), activations=(torch.sin,))
    assert seen.unseen == ""
    assert len(seen) == len(summary) + 1


def test_the_table_is_aligned(images):
    header, rule, *rows, end, foot = str(layer_summary(network(), images)).splitlines()
    assert header.split() == ["layer", "enters", "shape", "kind", "⟨z²⟩", "never", "on", "penalised"]
    assert set(rule) == set(end) == {"-"}
    assert [row.split()[0] for row in rows] == ["norm", "fc", "head"]
    column = header.index("penalised")
    assert {row[column:] for row in rows} == {"yes"}
    assert foot.startswith("3 layers, ⟨z²⟩ of the network ")


def test_a_notebook_shows_a_table(images):
    summary = layer_summary(nn.Sequential(network(), nn.ReLU()), images)
    text = summary._repr_html_()
    assert text.count("<tr>") == 1 + len(summary)
    assert "<td>0.fc</td>" in text
    hostile = type(summary)((SummarisedLayer("<b>", "relu", (1,), "hidden", 1.0, 0.0, True),), "a < b")
    assert "<b>" not in hostile._repr_html_()
    assert "a &lt; b" in hostile._repr_html_()


def test_what_is_refused(images):
    with pytest.raises(TypeError, match=r"`torch\.nn\.Module` but got builtin_function_or_method"):
        layer_summary(torch.relu, images)
    with pytest.raises(ValueError, match="No potential was found: the batch"):
        layer_summary(network().eval(), images[:0])
    with pytest.raises(ValueError, match=r"No layer is left .* are: norm, fc, head\."):
        layer_summary(network(), images, exclude=("*",))
    for batch in ((images, images), [images], DataLoader(images)):
        kind = type(batch).__name__
        with pytest.raises(TypeError, match=rf"one argument, a {kind}, and failed\. .* such as `batch\[0\]`"):
            layer_summary(network(), batch)
    with pytest.raises(RuntimeError, match="Kernel size"):
        layer_summary(network(), images[:, :1, :1])
