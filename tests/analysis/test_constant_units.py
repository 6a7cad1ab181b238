"""Units that never change their state, against counts written out in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_psp import record_potentials
from lightning_psp.analysis import ConstantStates, ConstantUnits, constant_units
from lightning_psp.metrics import PSPEntropy
from tests.support.networks import LeNet5, SharedWeights


class Convolution(nn.Module):
    """Two filters over two positions, of which the second one depends on its bias alone; one hidden unit; no output."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.head = nn.Conv1d(1, 2, 2), nn.Linear(4, 1), nn.Linear(1, 2)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([[[1.0, -1.0]], [[0.0, 0.0]]]))
            self.conv.bias.copy_(torch.tensor([0.5, 2.0]))
            self.fc.weight.copy_(torch.tensor([[-1.0, -1.0, 0.0, 0.0]]))
            self.fc.bias.fill_(0.0)

    def forward(self, x):
        return self.head(F.relu(self.fc(F.relu(self.conv(x)).flatten(1))))


# The first filter's potentials: x0 - x1 + 0.5 and x1 - x2 + 0.5.
SIGNALS = torch.tensor([[[3.0, 1.0, 0.0]], [[0.0, 0.0, 0.0]], [[1.0, 1.0, 4.0]]])


def test_units_by_hand():
    found = constant_units(Convolution(), [(SIGNALS[:2],), (SIGNALS[2:],)])
    assert list(found.layers) == ["conv", "fc"]
    assert found.layers["conv"].units == 4
    assert found.layers["conv"].on.tolist() == [0, 2, 3]  # 2.5, 0.5, 0.5; the second filter is 2 at both positions
    assert found.layers["conv"].off.tolist() == []  # unit 1 is 1.5, 0.5, -2.5
    assert (found.layers["fc"].off.tolist(), found.layers["fc"].on.tolist()) == ([0], [])


def test_saved_and_loaded(tmp_path):
    found = constant_units(Convolution(), [(SIGNALS,)])
    found.save(tmp_path / "units.pt")
    loaded = ConstantUnits.load(tmp_path / "units.pt")
    assert list(loaded.layers) == ["conv", "fc"]
    assert isinstance(loaded.layers["conv"], ConstantStates)
    assert (loaded.layers["conv"].on.tolist(), loaded.layers["conv"].units) == ([0, 2, 3], 4)
    with pytest.raises(ValueError, match=r"file of `ConstantStates\.save`"):
        ConstantStates.load(tmp_path / "units.pt")


class WithNamesOfFields(nn.Module):
    """Layers whose names are those by which results are written."""

    def __init__(self):
        super().__init__()
        self.result, self.fields, self.head = nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(2, 1)

    def forward(self, x):
        return self.head(torch.relu(self.fields(torch.relu(self.result(x)))))


def test_names_of_layers_are_no_results(tmp_path):
    found = constant_units(WithNamesOfFields(), [(torch.ones(1, 2),)])
    found.save(tmp_path / "units.pt")
    loaded = ConstantUnits.load(tmp_path / "units.pt")
    assert list(loaded.layers) == ["result", "fields"]
    assert loaded.layers["result"].units == 3


def test_zero_is_off():
    network = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    nn.init.zeros_(network[0].weight)
    nn.init.zeros_(network[0].bias)
    assert constant_units(network, [(torch.ones(2, 1),)]).layers["0"].off.tolist() == [0]


def test_every_unit_of_lenet_has_the_states_that_were_counted():
    torch.manual_seed(0)
    network, images = LeNet5().double(), torch.randn(13, 1, 28, 28, dtype=torch.float64)
    x1 = F.conv2d(images, network.conv1.weight, network.conv1.bias)
    x2 = F.conv2d(F.max_pool2d(x1.clamp(min=0), 2), network.conv2.weight, network.conv2.bias)
    x3 = F.max_pool2d(x2.clamp(min=0), 2).flatten(1) @ network.fc1.weight.T + network.fc1.bias
    found = constant_units(network, [(images[:5],), (images[5:10],), (images[10:],)])
    assert list(found.layers) == ["conv1", "conv2", "fc1"]
    for layer, z in zip(("conv1", "conv2", "fc1"), (x1, x2, x3), strict=True):
        times_on = (z.flatten(1) > 0).sum(0).tolist()
        assert found.layers[layer].units == len(times_on)
        assert found.layers[layer].off.tolist() == [unit for unit, times in enumerate(times_on) if times == 0]
        assert found.layers[layer].on.tolist() == [unit for unit, times in enumerate(times_on) if times == 13]
        assert 0 < len(found.layers[layer].off) < len(times_on)


def test_constant_units_have_no_entropy():
    torch.manual_seed(0)
    network, images = LeNet5(), torch.randn(6, 1, 28, 28)
    found = constant_units(network, [(images,)]).layers["conv2"]
    metric = PSPEntropy(1, reduction="none")
    with torch.no_grad(), record_potentials(network) as potentials:
        network(images)
    metric.update(potentials["conv2"], torch.zeros(6, dtype=torch.int64))
    constant = torch.cat([found.off, found.on]).sort()[0]
    assert (metric.compute() == 0).nonzero().flatten().tolist() == constant.tolist()


def test_passes_are_observations_and_parts_are_units():
    torch.manual_seed(0)
    network, x = SharedWeights(), torch.randn(4, 6)
    passes, state = [], x
    for _ in range(3):
        z = network.shared(state)
        passes.append(z > 0)
        state = torch.tanh(z)
    found = constant_units(network, [(x,)]).layers["shared"]
    assert found.units == 6
    assert found.on.tolist() == torch.cat(passes).all(0).nonzero().flatten().tolist()
    assert found.off.tolist() == (~torch.cat(passes).any(0)).nonzero().flatten().tolist()

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.both, self.head = nn.Linear(3, 4), nn.Linear(2, 2)

        def forward(self, x):
            gate, value = self.both(x).chunk(2, 1)
            return self.head(torch.sigmoid(gate) * torch.tanh(value))

    network = Gated()
    nn.init.zeros_(network.both.weight)
    network.both.bias.data.copy_(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    found = constant_units(network, [(torch.randn(4, 3),)]).layers["both"]
    assert (found.on.tolist(), found.off.tolist(), found.units) == ([0, 3], [1, 2], 4)


def test_patterns_choose_layers():
    data = [(SIGNALS,)]
    assert list(constant_units(Convolution(), data, exclude=("conv",)).layers) == ["fc"]
    assert list(constant_units(Convolution(), data, include=("conv",)).layers) == ["conv"]
    with pytest.raises(ValueError, match="'convolution' of argument `include` matches no layer"):
        constant_units(Convolution(), data, include=("convolution",))


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_left_as_it_was(fails):
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 2))
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    seen = []

    def data():
        yield torch.randn(5, 3), torch.zeros(5)
        seen.append(network.training or torch.is_grad_enabled())
        network[1].running_mean.add_(1.0)
        if fails:
            raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            constant_units(network, data())
    else:
        constant_units(network, data())
    assert seen == [False]
    assert [part.training for part in network] == [True, False, True, True, True]
    assert torch.is_grad_enabled()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_batch_without_samples_has_no_states():
    network = Convolution()
    with_one = constant_units(network, [(SIGNALS,), (SIGNALS[:0],)])
    for layer, found in constant_units(network, [(SIGNALS,)]).layers.items():
        assert torch.equal(found.off, with_one.layers[layer].off)
        assert torch.equal(found.on, with_one.layers[layer].on)


def test_what_is_refused():
    network = Convolution()
    with pytest.raises(TypeError, match=r"`module` to be a `torch\.nn\.Module`"):
        constant_units(torch.relu, [(SIGNALS,)])
    with pytest.raises(ValueError, match=r"'0\.weight' is on the meta device, without numbers"):
        constant_units(nn.Sequential(nn.Linear(3, 2, device="meta"), nn.ReLU()), [(torch.randn(4, 3),)])
    with pytest.raises(ValueError, match="at least one batch"):
        constant_units(network, [])
    with pytest.raises(TypeError, match=r"first item is the network's input, such as .* but got Tensor"):
        constant_units(network, [SIGNALS])
    with pytest.raises(TypeError, match=r"but got dict\. Make tuples of it, such as \(batch\['x'\],\)\."):
        constant_units(network, [{"x": SIGNALS}])
    with pytest.raises(ValueError, match="layer 'conv' to hold numbers or infinities but got NaN"):
        constant_units(network, [(SIGNALS * torch.nan,)])
    with pytest.raises(ValueError, match=r"a hidden layer .* but got output layers alone: output"):
        constant_units(nn.Linear(3, 2), [(torch.ones(2, 3),)])
    with pytest.raises(ValueError, match=r"by include=\('head',\), exclude=\(\) but got output layers alone: head"):
        constant_units(Convolution(), [(SIGNALS,)], include=("head",))
    sizes = nn.Sequential(nn.Conv1d(1, 1, 2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(1, 2))
    with pytest.raises(ValueError, match=r"'0' has 2 units in one pass and 3 in another.*`exclude`"):
        constant_units(sizes, [(torch.ones(1, 1, 3),), (torch.ones(1, 1, 4),)])
