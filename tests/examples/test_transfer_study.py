"""The transfer study on made-up networks and the digits: which networks, what is measured, and what is written."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("scipy")
pytest.importorskip("torchvision")
pytest.importorskip("sklearn")

from sklearn.linear_model import LogisticRegression

import transfer_study
from pruning_study import SMALL
from support.data import Digits
from support.models import DigitsLeNet
from tests.support.pruning_folder import write_training
from transfer_study import features, interval, trained_networks

pytestmark = pytest.mark.first

IMAGES = 60
SPLITS = {"mnist": 0, "fashion": 1}  # two sets of digits in place of the two sets
TASKS = {
    f"lenet300_{name}": replace(SMALL["digits"], data=lambda folder, seed=seed: Digits(split_seed=seed))
    for name, seed in SPLITS.items()
}


@pytest.fixture(scope="module")
def solutions(tmp_path_factory):
    """Two seeds of each arm, one-shot arms at two levels, and trainings that are not asked for."""
    folder = tmp_path_factory.mktemp("pruning")
    rows = []
    for name in SPLITS:
        for seed in range(3):
            settings = {"task": f"lenet300_{name}", "seed": seed, "lam": 0.0, "level": 0}
            rows += [
                write_training(folder, DigitsLeNet(), {**settings, "arm": "dense"}, [0.0]),
                write_training(folder, DigitsLeNet(), {**settings, "arm": "gradual"}, [0.0, 0.5, 0.9]),
                write_training(folder, DigitsLeNet(), {**settings, "arm": "gradual", "lam": 0.3}, [0.0, 0.5]),
            ]
            for arm in ("one_shot", "lottery_ticket", "random_structure"):
                for level, share in ((1, 0.5), (2, 0.9)):
                    row = {**settings, "arm": arm, "level": level}
                    rows.append(write_training(folder, DigitsLeNet(), row, [share]))
    (folder / "pruning_study.json").write_text(json.dumps({"trainings": rows}))
    return folder


@pytest.fixture(scope="module")
def results(solutions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("transfer")
    with pytest.MonkeyPatch.context() as patch:
        run(patch, solutions, folder)
    return folder / "lenet300"


def run(patch, solutions, folder, images=IMAGES):
    patch.setattr(transfer_study, "TASKS", TASKS)
    folders = ["--data", str(folder), "--solutions", str(solutions), "--results", str(folder)]
    patch.setattr(sys, "argv", ["transfer_study.py", "--images", str(images), "--seeds", "2", *folders])
    transfer_study.main()


def rows_of(results):
    return list(json.loads((results / "transfer_study.json").read_text()).values())


def test_networks_are_dense_ones_and_those_of_the_highest_sparsity(solutions):
    found = {str(each.path.relative_to(solutions)) for each in trained_networks(solutions, "lenet300", 2)}
    assert found == {
        f"lenet300_{name}_{file}"
        for name in SPLITS
        for seed in (0, 1)
        for file in (
            f"dense_seed{seed}/level00.pt",
            f"gradual_seed{seed}/level02.pt",
            f"one_shot_level02_seed{seed}/level00.pt",
            f"lottery_ticket_level02_seed{seed}/level00.pt",
        )
    }


def hidden(network, images):
    """What enters the last layer."""
    x = F.max_pool2d(network.conv1(images).clamp(min=0), 2)
    x = F.max_pool2d(network.conv2(x).clamp(min=0), 2)
    return network.fc1(x.flatten(1)).clamp(min=0).detach()


def test_features_are_what_enters_the_last_layer():
    torch.manual_seed(0)
    network = DigitsLeNet().eval()
    images, labels = torch.rand(12, 1, 8, 8), torch.arange(12) % 10
    found, classes = features(network, [(images[:5], labels[:5]), (images[5:], labels[5:])])
    np.testing.assert_allclose(found, hidden(network, images).numpy(), rtol=1e-5, atol=1e-6)
    assert classes.tolist() == labels.tolist()
    assert not network.fc2._forward_pre_hooks


def test_errors_are_on_the_own_set_and_accuracies_on_the_other(results, solutions):
    rows = rows_of(results)
    assert len(rows) == 2 * 4 * 2
    for row in rows:
        assert row["sparsity"] == pytest.approx(0.0 if row["arm"] == "dense" else 0.9, abs=1e-3)
        assert 0 < row["entropy"] < row["entropy2"]
        assert row["accuracy"] > 25  # features of random networks tell digits apart; labels of the other set do not

    row = next(row for row in rows if (row["source"], row["arm"], row["seed"]) == ("fashion", "gradual", 1))
    network = DigitsLeNet()
    weights = torch.load(solutions / "lenet300_fashion_gradual_seed1" / "level02.pt", weights_only=True)["weights"]
    network.load_state_dict({name.removeprefix("network."): value for name, value in weights.items()})
    images, labels = (each[:IMAGES] for each in Digits(split_seed=SPLITS["fashion"]).test_set.tensors)
    wrong = (network(images).argmax(1) != labels).float().mean().item()
    assert row["test_error"] == pytest.approx(100 * wrong)
    other = Digits(split_seed=SPLITS["mnist"])
    (x, y), (x_test, y_test) = ((each[:IMAGES] for each in part.tensors) for part in (other.train_set, other.test_set))
    x, x_test = hidden(network, x).numpy(), hidden(network, x_test).numpy()
    deviation = np.where(x.std(0) > 0, x.std(0), 1)
    regression = LogisticRegression(max_iter=300, tol=1e-3).fit((x - x.mean(0)) / deviation, y)
    right = regression.predict((x_test - x.mean(0)) / deviation) == y_test.numpy()
    assert row["accuracy"] == pytest.approx(100 * right.mean(), abs=2)


def test_the_table_has_a_line_for_each_kind(results):
    text = (results / "transfer_study.md").read_text()
    rows = [row for row in rows_of(results) if (row["source"], row["arm"]) == ("fashion", "gradual")]
    accuracies = [row["accuracy"] for row in rows]
    section = text.split("## From Fashion-MNIST to MNIST")[1]
    line = next(line for line in section.splitlines() if line.startswith("| gradual (LOBSTER)"))
    assert f"{np.mean(accuracies):.2f} ± {np.std(accuracies, ddof=1):.2f}" in line
    assert line.startswith("| gradual (LOBSTER) | 2 |")
    assert text.count("rank correlation") == 8
    assert "|\n\n- PSP-entropy" in text  # a list, and no row of the table


def test_what_is_done_is_not_done_again(results, solutions, monkeypatch):
    before = (results / "transfer_study.md").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(transfer_study, "probe", lambda network, target: pytest.fail("computed again"))
        run(patch, solutions, results.parent)
    assert (results / "transfer_study.md").read_text() == before
    with pytest.raises(ValueError, match=r"'images': 61\} but got one with \{'images': 60\}: remove it"):
        run(monkeypatch, solutions, results.parent, images=61)


def test_solutions_that_are_missing_name_the_script(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"run `pruning_study\.py --data FOLDER --tasks lenet300_mnist`"):
        run(monkeypatch, tmp_path, tmp_path)


def test_the_interval_holds_the_rank_correlation():
    x = np.arange(12.0)
    value, low, high = interval(x, x**3)
    assert (value, low, high) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    generator = np.random.default_rng(1)
    noisy = x + generator.normal(0, 4, 12)
    order = {place: rank for rank, place in enumerate(np.argsort(noisy))}
    expected = 1 - 6 * sum((rank - place) ** 2 for place, rank in order.items()) / (12 * (12**2 - 1))
    value, low, high = interval(x, noisy)
    assert value == pytest.approx(expected)
    assert low < value < high
    assert value - low > 0.1
