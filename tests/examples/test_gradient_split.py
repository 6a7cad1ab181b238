"""The example that splits the gradient, with short trainings."""

import sys

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("sklearn")

import gradient_split
from lightning_psp.analysis import GradientParts
from support.networks import LeNet5
from tests.support.idx import write_sets


@pytest.fixture
def split(monkeypatch, tmp_path, capsys):
    """Runs the script, and returns its output and what it has saved."""
    monkeypatch.setattr(gradient_split, "IMAGES", 50)

    def run(*arguments):
        output = tmp_path / "output"
        command = ["gradient_split.py", "--output", str(output), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        gradient_split.main()
        saved = {path.stem: GradientParts.load(path) for path in output.glob("*.json")}
        assert {path.name for path in output.iterdir()} == {
            *(f"{name}.json" for name in saved),
            *(next(iter(saved)).split("_")[0] + ending for ending in (".md", ".png")),
        }
        return capsys.readouterr().out, saved

    return run


def test_digits(split):
    printed, saved = split("--epochs", "1")
    states = ("untrained", "trained", "psp")
    assert saved.keys() == {f"digits_{state}_{reduction}" for state in states for reduction in ("mean", "sum")}
    parts = saved["digits_trained_sum"]
    assert parts.layers == ("conv1", "conv2", "fc1", "fc2")
    assert parts.reduction == "sum"
    own, *later = (100 * parts.shares[0]).tolist()
    row = next(line for line in printed.splitlines() if line.startswith("| trained | sum | conv1.weight"))
    assert row.split(" | ")[3:] == [*(f"{share:.1f}" for share in (own, *later)), f"{sum(later):.1f} |"]
    assert not torch.equal(parts.shares, saved["digits_untrained_sum"].shares)
    assert not torch.equal(parts.shares, saved["digits_psp_sum"].shares)


def test_mnist(split, tmp_path):
    write_sets(tmp_path)
    networks = {"trained": LeNet5(), "psp": LeNet5()}
    torch.save(networks["trained"].state_dict(), tmp_path / "MNIST_none_seed0.pt")
    torch.save(networks["psp"].state_dict(), tmp_path / "MNIST_psp_seed0.pt")
    _, saved = split("--data", str(tmp_path), "--trainings", str(tmp_path))
    assert len(saved) == 6
    assert all(name.startswith("lenet5_") for name in saved)
    images = gradient_split.MNIST(tmp_path).load(train=False)[0][:50].float()
    images = (images / 255 - 0.1307) / 0.3081
    for state, network in networks.items():
        expected = gradient_split.psp_gradient_parts(network, images, reduction="sum")
        torch.testing.assert_close(saved[f"lenet5_{state}_sum"].norms, expected.norms, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trainings", "."], "both --data and --trainings"),
        (["--trainings", ".", "--data", ".", "--epochs", "2"], "--epochs is for the digits"),
    ],
)
def test_arguments_that_do_not_fit(split, capsys, arguments, message):
    with pytest.raises(SystemExit):
        split(*arguments)
    assert message in capsys.readouterr().err
