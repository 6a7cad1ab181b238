"""Networks without their constant units: smaller, and the same function of the data."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.models import vgg11_bn

from lightning_psp.pruning import apply_masks, magnitude_masks, remove_constant_units
from tests.support.pruning.networks import NETWORKS as PRUNED
from tests.support.pruning.training import Pruned
from tests.support.pruning.units import LAYERS, data, silence, two_layers, units


def paths(network):
    return [path for path, part in network.named_modules() if isinstance(part, LAYERS)]


def enliven(network, batches):
    """Has the potentials of all units that have weights be 0 in the mean, so that none is off by chance."""

    def shift(layer, arguments, output):
        unit_dim = -1 if isinstance(layer, nn.Linear) else 1
        mean = output.movedim(unit_dim, 0).flatten(1).mean(1)
        mean[
            layer.weight.movedim(1 if isinstance(layer, nn.ConvTranspose2d) else 0, 0).flatten(1).abs().sum(1) == 0
        ] = 0
        layer.bias -= mean
        return (output.movedim(unit_dim, -1) - mean).movedim(-1, unit_dim)

    with torch.no_grad():
        for path in paths(network):
            layer = network.get_submodule(path)
            handle = layer.register_forward_hook(shift) if layer.bias is not None else None
            network.eval()(torch.cat([inputs for inputs, _ in batches]))
            if handle is not None:
                handle.remove()
    network.train()


def assert_same(smaller, network, batches):
    was_training = network.training
    for inputs, _ in batches:
        torch.testing.assert_close(smaller.eval()(inputs), network.eval()(inputs), rtol=1e-12, atol=1e-12)
    network.train(was_training)


# --- smaller networks ------------------------------------------------------------------------------------------------


def convolutions(between=(), second=None, behind=()):
    second = second or nn.Conv2d(6, 4, 3, padding=1)
    return nn.Sequential(nn.Conv2d(2, 6, 3), *between, nn.ReLU(), second, *behind)


class Functional(nn.Module):
    """Functions and methods in place of modules; a flattening that asks for sizes."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Linear(6 * 16, 5)
        self.third = nn.Linear(5, 3)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.norm(self.first(x))), 2)
        x = functional.dropout(x.view(x.size(0), -1), 0.5, self.training)
        return self.third(self.second(x).relu_()).log_softmax(1)


# name: network, shape of its input, the units that are silenced (path, unit, bias, expected to go)
NETWORKS = {
    "off": (lambda: two_layers(nn.ReLU()), (4,), [("0", 1, -1.0, True), ("0", 4, 0.0, True)]),
    "always the same": (lambda: two_layers(nn.ReLU()), (4,), [("0", 1, 2.0, True)]),
    "sigmoid": (lambda: two_layers(nn.Sigmoid()), (4,), [("0", 1, -1.0, True), ("0", 0, 0.0, True)]),
    "gelu": (lambda: two_layers(nn.GELU()), (4,), [("0", 5, -1.0, True)]),
    "prelu for each": (lambda: two_layers(nn.PReLU(6)), (4,), [("0", 5, -1.0, True)]),
    "prelu for all": (lambda: two_layers(nn.PReLU()), (4,), [("0", 5, -1.0, True)]),
    "no bias behind": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3, bias=False)),
        (4,),
        [("0", 2, 2.0, True)],
    ),
    "sequences": (lambda: two_layers(nn.Tanh()), (7, 4), [("0", 2, 2.0, True)]),
    "batch norm of features": (
        lambda: two_layers(nn.Sequential(nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout())),
        (4,),
        [("0", 2, 2.0, True), ("0", 3, -9.0, True)],
    ),
    "filters": (convolutions, (2, 8, 8), [("0", 1, -1.0, True), ("0", 5, -1.0, True)]),
    "filters with batch norm": (
        lambda: convolutions([nn.BatchNorm2d(6)]),
        (2, 8, 8),
        [("0", 1, -9.0, True), ("0", 5, -8.0, True)],
    ),
    "a constant before zeros": (convolutions, (2, 8, 8), [("0", 1, 1.0, False)]),
    "a constant before 'same'": (
        lambda: convolutions(second=nn.Conv2d(6, 4, 3, padding="same")),
        (2, 8, 8),
        [("0", 1, 1.0, False)],
    ),
    "a constant without padding": (
        lambda: convolutions(second=nn.Conv2d(6, 4, 3, stride=2, dilation=2, bias=False)),
        (2, 8, 8),
        [("0", 1, 1.0, True)],
    ),
    "a constant with its own padding": (
        lambda: convolutions(second=nn.Conv2d(6, 4, 3, padding=1, padding_mode="replicate")),
        (2, 8, 8),
        [("0", 1, 1.0, True)],
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(2, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3, stride=2)),
        (2, 4, 4),
        [("0", 1, -1.0, True), ("0", 2, 1.0, False)],
    ),
    "flattened": (
        lambda: convolutions(
            [nn.MaxPool2d(2)],
            nn.Conv2d(6, 4, 2),
            [nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 2)],
        ),
        (2, 8, 8),
        [("0", 1, -1.0, True), ("3", 0, 2.0, True), ("6", 4, 3.0, True)],
    ),
    "normalised behind flattening": (
        lambda: convolutions(
            [nn.MaxPool2d(2)],
            nn.Conv2d(6, 4, 2),
            [nn.PReLU(4), nn.Flatten(), nn.BatchNorm1d(16), nn.PReLU(16), nn.Linear(16, 3)],
        ),
        (2, 8, 8),
        [("0", 1, -1.0, True), ("3", 2, 2.0, True)],
    ),
    "pooled to one": (
        lambda: convolutions(behind=[nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]),
        (2, 8, 8),
        [("0", 1, -1.0, True), ("2", 3, -9.0, True)],
    ),
    "functions": (
        Functional,
        (2, 8, 8),
        [("first", 1, 0.0, True), ("second", 1, 2.0, True), ("second", 3, -1.0, True)],
    ),
    "lightning": (lambda: Forwarding(two_layers(nn.ReLU())), (4,), [("network.0", 1, -1.0, True)]),
}


class Forwarding(Pruned):
    def forward(self, x):
        return self.network(x)


@pytest.mark.parametrize("name", NETWORKS)
def test_smaller_networks(name):
    make, shape, silenced = NETWORKS[name]
    torch.manual_seed(0)
    network = make().double()
    for part in network.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.uniform_(part.bias, -0.1, 0.1)
            nn.init.uniform_(part.running_mean, -0.1, 0.1)
    for path, unit, bias, _ in silenced:
        # a convolution's own zeros do not show in a unit that has no weights
        silence(network, path, unit, bias)
    batches = data(*shape)
    enliven(network, batches)
    before = copy.deepcopy(network.state_dict())
    counts = dict(zip(paths(network), units(network), strict=True))
    for path, _, _, goes in silenced:
        counts[path] -= goes
    smaller = remove_constant_units(network, batches)
    assert units(smaller) == list(counts.values())
    assert type(smaller) is type(network)
    assert all(part.training for part in smaller.modules())
    assert_same(smaller, network, batches)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    # it can be trained and saved like any other
    smaller.train()(batches[0][0]).sum().backward()
    assert all(parameter.grad is not None for parameter in smaller.parameters())
    smaller.load_state_dict(copy.deepcopy(smaller.state_dict()))


@pytest.mark.parametrize("name", ["lenet300", "lenet5"])
def test_pruned_networks(name):
    """All units that a search one by one finds, and no other."""
    torch.manual_seed(0)
    network = PRUNED[name]().double()
    apply_masks(network, magnitude_masks(network, sparsity=0.97))
    batches = data(1, 28, 28)
    smaller = remove_constant_units(network, batches)
    assert_same(smaller, network, batches)
    names = paths(network)
    outputs = {}
    with torch.no_grad():
        x = torch.cat([inputs for inputs, _ in batches])
        for path in names[:-1]:
            layer = network.get_submodule(path)
            if isinstance(layer, nn.Linear):
                x = layer(x.flatten(1)).relu()
            else:
                x = functional.max_pool2d(layer(x).relu(), 2)
            outputs[path] = x
    expected = []
    for path, following in zip(names, [*names[1:], None], strict=True):
        if following is None:
            expected.append(10)
            continue
        rows = outputs[path].movedim(1, 0).flatten(2) if outputs[path].dim() == 4 else outputs[path].T[..., None]
        is_constant = (rows == rows[:, :1]).all(1).all(1)
        if isinstance(network.get_submodule(following), nn.Conv2d):
            is_constant &= (rows == rows[:, :1, :1]).flatten(1).all(1)
        expected.append(max(1, int((~is_constant).sum())))
    assert units(smaller) == expected
    assert sum(units(smaller)) < sum(units(network))


def test_a_whole_layer_keeps_one_unit():
    network = two_layers(nn.ReLU()).double()
    for unit in range(6):
        silence(network, "0", unit)
    smaller = remove_constant_units(network, data(4))
    assert units(smaller) == [1, 3]
    assert_same(smaller, network, data(4))


def test_batch_norm_and_pooling_of_a_known_network():
    torch.manual_seed(0)
    network = vgg11_bn(num_classes=4).double().eval()
    network.avgpool = nn.Identity()
    network.classifier[0] = nn.Linear(512, 4096).double()
    for path in ("features.0", "features.8", "classifier.0"):
        for unit in (0, 7):
            silence(network, path, unit, bias=-50.0)
    batches = data(3, 32, 32, batches=1, samples=2)
    smaller = remove_constant_units(network, batches)
    assert not smaller.training
    assert_same(smaller, network, batches)
    before, after = (dict(zip(paths(each), units(each), strict=True)) for each in (network, smaller))
    for path in ("features.0", "features.8", "classifier.0"):
        assert after[path] <= before[path] - 2
    assert smaller.features[1].num_features == after["features.0"]


def test_patterns():
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    for path in "02":
        silence(network, path, 1)
    enliven(network, data(4))
    assert units(remove_constant_units(network, data(4))) == [5, 4, 3]
    assert units(remove_constant_units(network, data(4), include=["2"])) == [6, 4, 3]
    smaller = remove_constant_units(network, data(4), exclude=["2"])
    assert units(smaller) == [5, 5, 3]
    assert_same(smaller, network, data(4))
    assert units(remove_constant_units(network, data(4), exclude=["2", "4"])) == [5, 5, 3]
    with pytest.raises(ValueError, match=r"Pattern '5' .* matches no layer\. The layers that .* are: 0, 2, 4\."):
        remove_constant_units(network, data(4), include=["5"])
    with pytest.raises(ValueError, match=r"to choose one of 0, 2 but got 4 alone, the last layer"):
        remove_constant_units(network, data(4), include=["4"])


def test_a_single_layer_keeps_all_units():
    network = nn.Sequential(nn.Linear(4, 3)).double()
    assert units(remove_constant_units(network, data(4))) == [3]
    with pytest.raises(ValueError, match=r"Pattern 'foo' .* matches no layer"):
        remove_constant_units(network, data(4), include=["foo"])
    with pytest.raises(ValueError, match="`data` to give at least one sample but got none"):
        remove_constant_units(network, [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions(dtype):
    torch.manual_seed(0)
    network = PRUNED["lenet300"]().to(dtype)
    apply_masks(network, magnitude_masks(network, sparsity=0.995))
    batches = data(1, 28, 28, dtype=dtype)
    smaller = remove_constant_units(network, batches)
    assert units(smaller)[0] < 300
    assert {parameter.dtype for parameter in smaller.parameters()} == {dtype}
    for inputs, _ in batches:
        torch.testing.assert_close(smaller(inputs), network(inputs))


def test_what_is_frozen_stays_frozen():
    network = two_layers(nn.ReLU()).double()
    silence(network, "0", 1)
    network[0].weight.requires_grad_(False)
    smaller = remove_constant_units(network, data(4))
    assert [parameter.requires_grad for parameter in smaller.parameters()] == [False, True, True, True]
