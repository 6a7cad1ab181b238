"""The networks' sizes, their layers, and where dropout acts."""

import pytest
import torch

pytest.importorskip("torchvision")

from lightning_psp import record_potentials
from support import networks


def images(name, batch=2):
    shape = (1, 28, 28) if name.startswith("LeNet") else (3, 32, 32)
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))


# Parameters: by hand from the layers' shapes. ResNet-32: "0.46M" in Table 6 of its paper (arXiv 1512.03385).
@pytest.mark.parametrize(
    ("name", "parameters", "layers"),
    [
        ("LeNet5", 520 + 25_050 + 400_500 + 5_010, 4),
        ("LeNet300", 235_500 + 30_100 + 1_010, 3),
        ("AllCNNC", 2_688 + 2 * 83_040 + 166_080 + 3 * 331_968 + 37_056 + 1_930, 10),
        ("MobileNetV2", 2_236_682, 36),
        ("ResNet18", 11_173_962, 18),
        ("ResNet32", 464_154, 32),
    ],
)
def test_size_and_layers(name, parameters, layers):
    network = getattr(networks, name)()
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    with record_potentials(network) as potentials:
        logits = network(images(name))
        torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1]))
    assert logits.shape == (2, 10)
    assert len(potentials) == layers


@pytest.mark.parametrize(
    ("name", "layer", "sizes"),
    [("MobileNetV2", "features", (32, 4)), ("ResNet18", "layer4", (32, 4)), ("ResNet32", "layer3", (32, 8))],
)
def test_resolution(name, layer, sizes):
    network = getattr(networks, name)()
    seen = []
    first = next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d))
    first.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[-1]))
    getattr(network, layer).register_forward_hook(lambda module, inputs, output: seen.append(output.shape[-1]))
    network(images(name))
    assert tuple(seen) == sizes


def test_resnet32_shortcuts_halve_and_pad():
    x = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    shortcut = networks.resnet.PaddedShortcut(2)(x)
    assert shortcut.shape == (2, 5, 2, 2)
    assert torch.equal(shortcut[:, :3], torch.stack([x[:, :, 0, ::2], x[:, :, 2, ::2]], dim=2))
    assert not shortcut[:, 3:].any()


@pytest.mark.parametrize("name", ["LeNet5", "LeNet300", "AllCNNC", "MobileNetV2", "ResNet18", "ResNet32"])
def test_dropout_acts_in_training_alone(name):
    network = getattr(networks, name)(dropout="unit" if name == "AllCNNC" else 0.5)
    batch = images(name, batch=4)
    assert not torch.equal(network(batch), network(batch))
    network.eval()
    assert torch.equal(network(batch), network(batch))
    # The batch norms' running statistics aside, a network without dropout is the same function.
    plain = getattr(networks, name)()
    plain.load_state_dict(network.state_dict(), strict=True)
    assert torch.equal(plain.eval()(batch), network(batch))


def test_dropout_of_whole_channels():
    network = networks.AllCNNC(dropout="channel")
    dropped = network.drop_hidden(torch.ones(4, 100, 3, 3)).flatten(2)
    assert (dropped.amax(2) == dropped.amin(2)).all()
    assert 0.3 < (dropped == 0).float().mean() < 0.7
