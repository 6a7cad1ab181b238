"""PSP-entropy of real networks, their potentials recorded."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lightning_psp import record_potentials
from lightning_psp.functional import psp_entropy
from lightning_psp.metrics import MeanSquarePotential, PSPEntropy
from tests.support.entropy_reference import bits, classwise, mean_over_sets, observations

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"


def recorded(network, inputs, **choice):
    with torch.no_grad(), record_potentials(network.eval(), **choice) as potentials:
        network(inputs)
    return potentials


def test_lenet_of_the_examples():
    pytest.importorskip("torchvision")
    from support.models import DigitsLeNet

    torch.manual_seed(0)
    network, images, labels = DigitsLeNet(), torch.randn(30, 1, 8, 8), torch.randint(0, 3, (30,))
    metrics = {layer: PSPEntropy(3) for layer in ("conv1", "conv2", "fc1")}
    channels = {layer: PSPEntropy(3, 2, "channel") for layer in ("conv1", "conv2")}
    for part, target in zip(images.split(13), labels.split(13), strict=True):
        for layer, z in recorded(network, part, output=False).items():
            metrics[layer].update(z, target)
            if layer in channels:
                channels[layer].update(z, target)
    whole = recorded(network, images, output=False)
    for layer, metric in metrics.items():
        expected = classwise(*observations(whole[layer], labels), 3)
        torch.testing.assert_close(metric.classwise(), torch.from_numpy(expected), rtol=0.0, atol=1e-12)
    states, classes = observations(whole["conv1"], labels, "channel")
    assert states.shape == (30 * 64, 16)
    assert channels["conv1"].compute().item() == pytest.approx(mean_over_sets(states, classes, 2), abs=1e-12)


def test_resnet():
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    network, images, labels = (
        models.resnet18(num_classes=4),
        torch.randn(6, 3, 32, 32),
        torch.tensor([0, 1, 0, 1, 0, 1]),
    )
    potentials = recorded(network, images, output=False)
    assert len(potentials) == 17
    for layer in ("bn1", "layer1.0.relu", "layer4.1.bn1"):
        z = potentials[layer]
        expected = classwise(*observations(z, labels, "channel"), 2).sum(0)
        found = psp_entropy(z, labels, 2, unit="channel", reduction="none")
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0.0, atol=1e-12)
        on = (z.transpose(0, 1).flatten(1)[:, : z[0, 0].numel()] > 0).sum(1)  # of the first image
        one = psp_entropy(z[:1], labels[:1], 1, unit="channel", reduction="none")
        assert one[:5].tolist() == pytest.approx([bits([int(k), z[0, 0].numel() - int(k)]) for k in on[:5]])


def test_transformer():
    torch.manual_seed(0)
    network = nn.TransformerEncoderLayer(8, 2, dim_feedforward=6, batch_first=True)
    inputs, labels = torch.randn(12, 5, 8), torch.randint(0, 2, (12,))
    potentials = recorded(network, inputs, include=["linear1"])
    z = potentials["linear1"]
    assert potentials.unit_dims["linear1"] % z.ndim == 2
    states, classes = observations(z, labels, "channel", -1)
    assert states.shape == (60, 6)
    for order in (1, 2, 3):
        value = psp_entropy(z, labels, 2, order, "channel", unit_dim=potentials.unit_dims["linear1"])
        assert value.item() == pytest.approx(mean_over_sets(states, classes, order), abs=1e-12)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:PSP-entropy of order .* is the mean over a random sample")
@pytest.mark.parametrize("precision", ["highest", "medium"])  # tensor cores count exactly, too
@pytest.mark.parametrize("unit", ["element", "channel"])
@pytest.mark.parametrize("order", [1, 2, 3, 12])
def test_on_a_gpu(order, unit, precision):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3000, 20, 4, 4, generator=generator)
    target = torch.randint(0, 5, (3000,), generator=generator)
    on_cpu, on_gpu = (PSPEntropy(5, order, unit, max_sets=2000).to(device) for device in ("cpu", "cuda"))
    on_cpu.update(z, target)
    torch.set_float32_matmul_precision(precision)
    try:
        for part, classes in zip(z.split(1000), target.split(1000), strict=True):
            with torch.autocast("cuda"):
                on_gpu.update(part.cuda(), classes.cuda())
        found, expected = on_gpu.estimate(), on_cpu.estimate()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert found.value == pytest.approx(expected.value, abs=1e-11)
    assert found.number_of_sets == expected.number_of_sets


@pytest.fixture(scope="module")
def trained():
    """Potentials of the hidden layers of a trained LeNet-5 and the labels of test images."""
    pytest.importorskip("torchvision")
    weights = DATA / "models" / "lenet5_mnist.pt"
    if not weights.exists():
        pytest.skip(f"needs {weights.name} and MNIST in {DATA.relative_to(ROOT.parent)}")
    from torchvision.datasets import MNIST

    from tests.benchmarks.mnist import LeNet5

    network = LeNet5()
    network.load_state_dict(torch.load(weights, weights_only=True))
    data = MNIST(DATA, train=False)
    images, labels = ((data.data[:2000].float() / 255 - 0.1307) / 0.3081).unsqueeze(1), data.targets[:2000]
    with torch.no_grad():
        assert (network(images).argmax(1) == labels).float().mean() > 0.97
    return recorded(network, images, output=False), labels


@pytest.mark.parametrize("layer", ["conv1", "conv2", "fc1"])
def test_clamped_probabilities(trained, layer):
    """The authors clamp probabilities to [1e-4, 0.9999], a floor of 0.00147 bits for each class and unit."""
    z, labels = trained[0][layer].flatten(1).double().numpy(), trained[1].numpy()
    exact = psp_entropy(trained[0][layer], trained[1], 10, reduction="none").numpy()
    clamped = np.zeros(z.shape[1])
    for label in range(10):
        p = np.clip((z[labels == label] > 0).mean(0), 1e-4, 0.9999)
        clamped += -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    floor = -1e-4 * np.log2(1e-4) - 0.9999 * np.log2(0.9999)
    assert floor == pytest.approx(0.00147, abs=5e-6)
    assert np.abs(clamped - exact).max() <= 10 * floor + 1e-9 < 0.02
    assert (clamped >= exact - 1e-9).all()
    assert psp_entropy(trained[0][layer], trained[1], 10).item() == pytest.approx(exact.mean(), abs=1e-12)


def test_mean_square_of_a_trained_network(trained):
    for z in trained[0].values():
        metric = MeanSquarePotential()
        for part in z.split(300):
            metric.update(part)
        assert metric.compute().item() == pytest.approx(float((z.double().numpy() ** 2).mean()), rel=1e-6)
