"""The study of settings of λ: what is trained, chosen and written, and that what is done is not done again."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("matplotlib")
pytest.importorskip("torchvision")
pytest.importorskip("sklearn")

import lambda_study
from lambda_study import EVERY, VALUES, Training, penalty, trainings
from lightning_psp import PSPCallback
from support.data import Digits
from support.gradient_share import KeepShare
from support.image_sample import image_sample
from support.images import MNIST
from support.lambda_report import WAYS, best, is_within_spread, one_value, summarise, tables
from support.lambda_tasks import TASKS
from tests.support.idx import SIZES, write_sets


def test_a_sample_of_images(tmp_path):
    write_sets(tmp_path)
    data = image_sample(MNIST, tmp_path, 50, 20, seed=1)
    sets = (data.train_set, data.validation_set, data.test_set)
    assert [len(each) for each in sets] == [50, 20, SIZES["t10k"]]
    images, labels = MNIST(tmp_path).load(train=True)
    normalised = (images.double() / 255 - 0.1307) / 0.3081
    drawn = torch.cat([each.tensors[0] for each in sets[:2]]).double()
    places = [int((normalised - image).abs().amax(dim=(1, 2, 3)).argmin()) for image in drawn]
    assert len(set(places)) == 70
    torch.testing.assert_close(normalised[places], drawn, rtol=0, atol=1e-5)
    assert labels[places].tolist() == torch.cat([each.tensors[1] for each in sets[:2]]).tolist()
    tests, _ = MNIST(tmp_path).load(train=False)
    expected = (tests.double() / 255 - 0.1307) / 0.3081
    torch.testing.assert_close(data.test_set.tensors[0].double(), expected, rtol=0, atol=1e-5)
    other = image_sample(MNIST, tmp_path, 50, 20, seed=2)
    assert not torch.equal(other.train_set.tensors[0], data.train_set.tensors[0])


@pytest.mark.parametrize("name", TASKS)
def test_networks_of_the_tasks(name):
    torch.manual_seed(0)
    size = 8 if name.startswith("digits") else 28
    module = TASKS[name].module()
    assert module(torch.randn(3, 1, size, size)).shape == (3, 10)
    has_batch_norm = any(isinstance(part, nn.BatchNorm2d) for part in module.modules())
    assert has_batch_norm == (name == "digits_resnet")


class Options:
    seeds, epochs, quick, output = 2, 3, False, None


def test_what_is_trained():
    planned = trainings("digits_mlp", Options)
    assert len(planned) == 2 * (1 + len(WAYS) * len(VALUES)) == len({each.file for each in planned})
    module, data = TASKS["digits_mlp"].module(), Digits()
    found = {}
    for way in ("none", *WAYS):
        callbacks = penalty(Training("digits_mlp", way, 0.3, 0, 1), module, data)
        found[way] = [type(each) for each in callbacks]
        for each in callbacks:
            if isinstance(each, PSPCallback):
                assert set(each.layer_lam) == ({"network.1", "network.4", "network.7"} if way == "layers" else set())
            else:
                assert (each.share, each.every) == (0.3, EVERY if way == "throughout" else None)
    both = [KeepShare, PSPCallback]
    assert found == {"none": [], "lam": [PSPCallback], "start": both, "throughout": both, "layers": both}


def entry(task, way, value, validation, test=(1.0, 3.0), loss=0.5):
    """Two seeds."""
    of_ways = {"first_lam": [value, value], "last_lam": [value / 2, value / 2], "measuring": [1.0, 1.0]}
    return {
        "task": task,
        "way": way,
        "value": value,
        "validation_error": [validation - 0.5, validation + 0.5],
        "validation_loss": [loss, loss],
        "test_error": list(test),
        "test_loss": [0.1, 0.1],
        "seconds": [11.0, 11.0],
        **({} if way in ("none", "lam") else of_ways),
    }


FIRST, SECOND = list(TASKS)[:2]
ENTRIES = [
    entry(FIRST, "none", 0.0, 9.0),
    entry(SECOND, "none", 0.0, 9.0),
    # The first task is best at 0.1, by its loss; the second at 1, where the first is twice as bad.
    entry(FIRST, "lam", 0.1, 2.0, loss=0.1),
    entry(FIRST, "lam", 0.3, 2.0),
    entry(FIRST, "lam", 1.0, 4.0),
    entry(SECOND, "lam", 0.1, 5.0),
    entry(SECOND, "lam", 0.3, 4.2, test=(3.0, 4.0)),
    entry(SECOND, "lam", 1.0, 4.0),
    *(
        entry(task, way, 0.1, 3.0, test=(3.0, 3.8))
        for task in (FIRST, SECOND)
        for way in ("start", "throughout", "layers")
    ),
]


def test_the_value_of_least_validation_error_and_the_one_that_serves_all():
    assert best(ENTRIES, FIRST, "lam")["value"] == 0.1
    assert best(ENTRIES, SECOND, "lam")["value"] == 1.0
    # Validation errors over those of the tuned λ: 1 and 1.25, 1 and 1.05, 2 and 1.
    assert {task: each["value"] for task, each in one_value(ENTRIES, "lam").items()} == {FIRST: 0.3, SECOND: 0.3}


def test_the_spread_is_a_standard_deviation_above_the_tuned():
    tuned = entry(FIRST, "lam", 0.1, 2.0, test=(1.0, 3.0))  # 2 ± 1.414
    assert is_within_spread(entry(FIRST, "lam", 1.0, 2.0, test=(3.4, 3.4)), tuned)
    assert not is_within_spread(entry(FIRST, "lam", 1.0, 2.0, test=(3.42, 3.42)), tuned)
    alone = {"test_error": [2.0]}
    assert is_within_spread(alone, alone)
    assert not is_within_spread({"test_error": [2.1]}, alone)


def test_tables():
    lines = [line.strip("| ").split(" | ") for line in tables(ENTRIES).splitlines()]
    tuned, shared, differences, lams = (line for line in lines if line[0] == TASKS[SECOND].title)
    assert tuned[1:3] == ["2.00 ± 1.41", "2.00 ± 1.41 (1)"]
    assert shared[1:4] == ["2.00 ± 1.41", "**3.50 ± 0.71**", "3.40 ± 0.57"]
    assert ["tasks beyond the spread", "", "1 of 2", "0 of 2", "0 of 2", "0 of 2"] in [
        [cell.strip() for cell in line] for line in lines
    ]
    assert differences[1:3] == ["1.50 ± 0.71", "1.40 ± 0.85"]  # 3 and 4 less 1 and 3; 3 and 3.8 less 1 and 3
    assert lams[1:] == ["0.100 ± 0.000", "0.100 ± 0.000", "0.050 ± 0.000", "10"]


def test_results_are_summarised_by_setting():
    results = [
        {
            "configuration": {"task": FIRST, "way": "start", "value": 0.3, "seed": seed},
            "epochs": [{"error": error, "loss": error / 10, "seconds": 2.0} for error in (9, 5, 4, 3, 2, 1)],
            "test_error": 1.0 + seed,
            "test_loss": 0.1,
            "lams": [0.5, 0.4],
            "measuring": 0.25,
        }
        for seed in (0, 1)
    ]
    assert summarise(results) == [
        {
            "task": FIRST,
            "way": "start",
            "value": 0.3,
            "validation_error": [3, 3],
            "validation_loss": [pytest.approx(0.3)] * 2,
            "test_error": [1.0, 2.0],
            "test_loss": [0.1, 0.1],
            "seconds": [12.0, 12.0],
            "first_lam": [0.5, 0.5],
            "last_lam": [0.4, 0.4],
            "measuring": [0.25, 0.25],
        }
    ]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["lambda_study.py", *arguments])
    lambda_study.main()


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    arguments = ["--quick", "--tasks", "digits_mlp", "--output", str(tmp_path)]
    run(monkeypatch, *arguments)
    folder = tmp_path / "quick"
    written = {path: path.stat().st_mtime_ns for path in (folder / "trainings").glob("*.json")}
    assert len(written) == 1 + len(WAYS)
    content = json.loads((folder / "lambda_study.json").read_text())
    assert {each["way"] for each in content["entries"]} == {"none", *WAYS}
    assert set(content["one_value"]) == set(WAYS)
    assert (folder / "lambda_study.md").read_text() == tables(content["entries"])
    assert (folder / "lambda_study.png").exists()
    run(monkeypatch, *arguments)
    assert {path: path.stat().st_mtime_ns for path in (folder / "trainings").glob("*.json")} == written


def test_committed_tables_are_those_of_the_committed_results():
    committed = Path(__file__).parents[2] / "docs/results/lambda_study"
    content = json.loads((committed / "lambda_study.json").read_text())
    assert (committed / "lambda_study.md").read_text() == tables(content["entries"])
    assert {len(each["test_error"]) for each in content["entries"]} == {content["seeds"]}


def test_images_need_a_folder(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--tasks", "digits_mlp", "lenet5_mnist")
    assert "need --data" in capsys.readouterr().err
