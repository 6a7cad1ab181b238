"""The reproduction's trainings: broken off and taken up, skipped once done, and what they write."""

import json
import sys

import lightning
import numpy as np
import pytest
import torch
from packaging.version import Version

pytest.importorskip("torchvision")
pytest.importorskip("sklearn")

import reproduce_lenet5
from support import resumable
from support.classifier import Classifier
from support.distributions import Histogram
from tests.support.idx import write_sets

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
ONE = ["--sets", "MNIST", "--techniques", "dropout", "--seeds", "1"]


class InterruptionError(Exception):
    pass


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_sets(folder)
    return folder


@pytest.fixture
def reproduce(monkeypatch, data):
    """Runs the script and returns what is in its results' folder."""

    def run(results, *arguments):
        command = ["reproduce_lenet5.py", "--data", str(data), "--results", str(results), "--accelerator", "cpu"]
        monkeypatch.setattr(sys, "argv", [*command, *arguments])
        reproduce_lenet5.main()
        return {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}

    return run


def without_times(result):
    return {**result, "epochs": [{**epoch, "seconds": None} for epoch in result["epochs"]]}


@pytest.mark.skipif(
    Version(lightning.__version__) < Version("2.6"), reason="Lightning draws a random number too many when it resumes"
)
def test_a_training_that_was_broken_off_ends_as_one_that_was_not(monkeypatch, tmp_path, reproduce):
    unbroken = reproduce(tmp_path / "unbroken", *ONE, "--epochs", "4")

    update = reproduce_lenet5.tqdm.update

    def break_off(bar, epochs=1):
        update(bar, epochs)
        if bar.n == 3:
            raise InterruptionError

    monkeypatch.setattr(reproduce_lenet5.tqdm, "update", break_off)
    with pytest.raises(InterruptionError):
        reproduce(tmp_path / "broken", *ONE, "--epochs", "4")
    assert not list((tmp_path / "broken").glob("*.json"))
    begun = torch.load(tmp_path / "broken/checkpoints/MNIST_dropout_seed0/last.ckpt", weights_only=False)
    assert begun["epoch"] == 1  # the third epoch was not done

    monkeypatch.setattr(reproduce_lenet5.tqdm, "update", update)
    broken = reproduce(tmp_path / "broken", *ONE, "--epochs", "4")
    (name,) = unbroken
    assert without_times(broken[name]) == without_times(unbroken[name])
    assert len(broken[name]["epochs"]) == 4
    assert not list((tmp_path / "broken/checkpoints").iterdir())


def test_what_is_done_is_skipped_and_another_configuration_refused(monkeypatch, tmp_path, reproduce):
    results = reproduce(tmp_path, *ONE, "--epochs", "1")
    with monkeypatch.context() as patch:
        patch.setattr(resumable, "Trainer", lambda **settings: pytest.fail("trained again"))
        assert reproduce(tmp_path, *ONE, "--epochs", "1") == results
    with pytest.raises(
        ValueError, match=r"MNIST_dropout_seed0\.json to be of a training with .*'epochs': 2.* remove it"
    ):
        reproduce(tmp_path, *ONE, "--epochs", "2")


def test_the_checkpoint_of_another_configuration_is_refused(tmp_path, reproduce):
    folder = tmp_path / "checkpoints" / "MNIST_dropout_seed0"
    folder.mkdir(parents=True)
    (folder / "configuration.json").write_text('{"epochs": 3}')
    (folder / "last.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"to be of a training with .* but got one with \{'epochs': 3\}"):
        reproduce(tmp_path, *ONE, "--epochs", "1")


def test_all_techniques_in_order_with_a_chosen_weight_decay(monkeypatch, tmp_path, reproduce):
    monkeypatch.setattr(reproduce_lenet5, "SWEEP_EPOCHS", 4)
    monkeypatch.setattr(reproduce_lenet5, "SWEEP_HELD_OUT", 100)
    monkeypatch.setattr(reproduce_lenet5, "WEIGHT_DECAYS", (1e-4, 0.3))
    trained, made = [], []
    run = reproduce_lenet5.Reproduction.run

    class Noted(Classifier):
        def __init__(self, network, **settings):
            super().__init__(network, **settings)
            made.append((network.dropout, self.weight_decay, self.learning_rate))

    monkeypatch.setattr(reproduce_lenet5, "Classifier", Noted)

    def note(self, training):
        trained.append(training)
        return run(self, training)

    monkeypatch.setattr(reproduce_lenet5.Reproduction, "run", note)
    results = reproduce(tmp_path, "--sets", "MNIST", "FashionMNIST", "--epochs", "1", "--seeds", "1")
    techniques = ["psp", "none", "dropout", "l2", "l2", "l2"]
    assert [(each.set, each.technique) for each in trained] == [
        (name, technique) for name in ("MNIST", "FashionMNIST") for technique in techniques
    ]
    assert [each.held_out for each in trained] == 2 * [0, 0, 0, 100, 100, 0]
    settings = {each.technique: each for each in trained[:6]}
    assert [settings[each].lam for each in ("psp", "none", "dropout", "l2")] == [1e-3, 0, 0, 0]
    assert [settings[each].dropout for each in ("psp", "none", "dropout", "l2")] == [0, 0, 0.5, 0]
    assert made == [(each.dropout, each.weight_decay, 0.1) for each in trained]
    sweep = {
        result["configuration"]["weight_decay"]: np.mean([epoch["error"] for epoch in result["epochs"][1:]])
        for name, result in results.items()
        if name.startswith("sweep_MNIST")
    }
    assert settings["l2"].weight_decay == min(sweep, key=sweep.get)
    assert set(sweep) == {1e-4, 0.3}
    # With one seed and no penalty the techniques start alike; the penalty alone tells the first epochs apart.
    first = {name: results[f"MNIST_{name}_seed0"]["epochs"][0] for name in ("psp", "none")}
    assert first["psp"]["train_loss"] == pytest.approx(first["none"]["train_loss"], rel=1e-3)
    assert first["psp"]["train_loss"] != first["none"]["train_loss"]


def conv(images, weight, bias):
    windows = np.lib.stride_tricks.sliding_window_view(images, (5, 5), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True) + bias[:, None, None]


def pool(x):
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).max((3, 5))


def test_the_values_of_the_last_epoch_and_the_histograms_are_those_of_the_network(
    monkeypatch, tmp_path, data, reproduce
):
    ((name, result),) = reproduce(tmp_path, *ONE, "--epochs", "8").items()

    state = torch.load(tmp_path / f"{name}.pt", weights_only=True)
    weights = {name: value.double().numpy() for name, value in state.items()}
    raw = {
        kind: np.frombuffer((data / f"MNIST/raw/t10k-{kind}-ubyte").read_bytes()[header:], dtype=np.uint8)
        for kind, header in (("images-idx3", 16), ("labels-idx1", 8))
    }
    images, labels = (raw["images-idx3"].reshape(-1, 1, 28, 28) / 255 - 0.1307) / 0.3081, raw["labels-idx1"]
    z = {"conv1": conv(images, weights["conv1.weight"], weights["conv1.bias"])}
    z["conv2"] = conv(pool(z["conv1"].clip(0)), weights["conv2.weight"], weights["conv2.bias"])
    hidden = pool(z["conv2"].clip(0)).reshape(len(labels), -1)
    z["fc1"] = hidden @ weights["fc1.weight"].T + weights["fc1.bias"]
    z["fc2"] = z["fc1"].clip(0) @ weights["fc2.weight"].T + weights["fc2.bias"]
    log_probabilities = z["fc2"] - np.log(np.exp(z["fc2"]).sum(1, keepdims=True))

    last = result["epochs"][-1]
    assert len(result["epochs"]) == 8
    assert last["error"] == pytest.approx(100 * (z["fc2"].argmax(1) != labels).mean(), abs=1e-3)
    assert last["loss"] == pytest.approx(-log_probabilities[np.arange(len(labels)), labels].mean(), rel=1e-4)
    squares = {layer: (value**2).mean() for layer, value in z.items()}
    assert last["z2_layers"] == pytest.approx(squares, rel=1e-4)
    assert last["z2"] == pytest.approx(np.mean(list(squares.values())), rel=1e-4)

    for kind, values, limit in (
        ("weights", {layer: weights[f"{layer}.weight"] for layer in z}, 1.0),
        ("potentials", z, 200.0),
    ):
        assert result[kind].keys() == values.keys()
        for layer, value in values.items():
            histogram = result[kind][layer]
            counts, _ = np.histogram(value, 2000, (-limit, limit))
            moved = np.abs(np.cumsum(histogram["counts"]) - np.cumsum(counts)).max()
            assert moved <= 1e-4 * value.size + 1  # float32 puts a few values into the neighbouring bin
            assert sum(histogram["counts"]) + histogram["beyond"] == value.size
            assert histogram["limit"] == limit
            assert histogram["mean"] == pytest.approx(value.mean(), rel=1e-4, abs=1e-5)
            assert histogram["deviation"] == pytest.approx(value.std(), rel=1e-4)


def test_a_histogram_counts_what_is_beyond_its_limits():
    histogram = Histogram(2.0)
    histogram.add(torch.tensor([-100.0, -2.0, 1.999, 2.0, 50.0]))
    summary = histogram.summary()
    assert (summary["counts"][0], summary["counts"][-1], sum(summary["counts"]), summary["beyond"]) == (1, 2, 3, 2)
    assert summary["mean"] == pytest.approx(np.mean([-100, -2, 1.999, 2, 50]))


def test_versions_and_configuration_are_written(tmp_path, reproduce):
    ((name, result),) = reproduce(tmp_path, *ONE, "--epochs", "1").items()
    assert name == "MNIST_dropout_seed0"
    assert result["versions"]["torch"] == torch.__version__
    assert result["configuration"] == {
        "set": "MNIST",
        "technique": "dropout",
        "seed": 0,
        "epochs": 1,
        "learning_rate": 0.1,
        "batch_size": 100,
        "lam": 0.0,
        "reduction": "mean",
        "weight_decay": 0.0,
        "dropout": 0.5,
        "held_out": 0,
    }


@pytest.mark.parametrize(
    ("errors", "chosen"),
    [
        # Equal sums, of which the first mean is the lower one in floating point.
        ({1e-5: [9.99, 10.26, 10.02], 1e-4: [10.17, 10.18, 9.92], 1e-3: [10.37, 10.69, 10.08]}, 1e-4),
        ({1e-5: [9.99, 10.26, 10.01], 1e-4: [10.17, 10.18, 9.92], 1e-3: [10.37, 10.69, 10.08]}, 1e-5),
    ],
)
def test_of_equal_weight_decays_the_strongest(monkeypatch, errors, chosen):
    assert np.mean(errors[1e-5]) < np.mean(errors[1e-4])
    monkeypatch.setattr(reproduce_lenet5, "WEIGHT_DECAYS", tuple(errors))
    reproduction = object.__new__(reproduce_lenet5.Reproduction)
    reproduction.run = lambda training: {"epochs": [{"error": error} for error in errors[training.weight_decay]]}
    assert reproduction.choose_weight_decay("MNIST") == chosen
