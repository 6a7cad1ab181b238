"""The page that compares the papers' tables with what was found here."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("torchvision")

import paper_comparison
from paper_comparison import NO_RUN, cells, cifar10_table, lenet5_table, other_cifar10_tables, pruning_table

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def training(errors, seconds=1800.0):
    return {"epochs": [{"error": error, "seconds": seconds} for error in errors]}


def rows(table):
    return [line.strip("| ").split(" | ") for line in table.splitlines()]


def test_a_cell_is_the_mean_of_the_last_five_epochs():
    # Over the last five epochs 2 and 4; 6 and 8 epochs of half an hour.
    results = [training([9.0, 1.0, 2.0, 3.0, 2.0, 2.0]), training([9.0, 9.0, 9.0, 3.0, 4.0, 4.0, 4.0, 5.0])]
    assert cells(results) == ["3.00 ± 1.41", "2", "6 or 8", "3.5"]
    assert cells(results[:1]) == ["2.00", "1", "6", "3.0"]
    assert cells([]) == [NO_RUN, "0", "–", "–"]


def test_lenet5():
    published = {"errors": {"MNIST": {"none": {"logs": "0.7"}, "psp": {"paper": "0.5"}}}, "epochs": {"MNIST": 50}}
    table = rows(lenet5_table("MNIST", {"psp": [training([0.25])]}, published))
    assert table[0][:3] == ["MNIST (50 epochs there)", "paper", "authors' logs"]
    assert table[2:] == [
        ["no regularisation", "–", "0.7", NO_RUN, "0", "–", "–"],
        ["PSP", "0.5", "–", "0.25", "1", "1", "0.5"],
    ]


def test_cifar10():
    trainings = {("CIFAR10", "MobileNetV2", 0): {"dropout": [training([7.0])]}}
    table = rows(cifar10_table(trainings, {"CIFAR10": {"MobileNetV2": {"l2": "6"}}}))
    assert ["MobileNetV2, ℓ2", "6", NO_RUN, "0", "–", "–"] in table
    assert ["MobileNetV2, dropout", "–", "7.00", "1", "1", "0.5"] in table
    assert ["ResNet-18, PSP", "–", NO_RUN, "0", "–", "–"] in table


def test_parts_of_cifar10_have_tables_of_their_own():
    found = {"none": [training([7.0])]}
    trainings = {
        ("CIFAR10", "ResNet-18", 0): found,
        ("CIFAR10-jpeg", "ResNet-18", 10_000): found,
        ("CIFAR10-jpeg", "ResNet-32", 10_000): {**found, "psp_eq7": [training([6.0])]},
        ("CIFAR10", "ResNet-18", 5_000): {"none": [training([9.0])]},
    }
    small, jpeg = (rows(table) for table in other_cifar10_tables(trainings))
    assert small[0] == ["CIFAR-10, 5,000 training images", "here", "seeds", "epochs", "hours"]
    assert small[2:] == [["ResNet-18, no regularisation", "9.00", "1", "1", "0.5"]]
    assert jpeg[0][0] == "CIFAR-10 as JPEGs, 10,000 training images"
    assert [row[:2] for row in jpeg[2:]] == [
        ["ResNet-18, no regularisation", "7.00"],
        ["ResNet-32, no regularisation", "7.00"],
        ["ResNet-32, PSP, Eq. 7", "6.00"],
    ]
    whole = cifar10_table(trainings, {"CIFAR10": {}})
    assert "| ResNet-18, no regularisation | – | 7.00 |" in whole
    assert "9.00" not in whole


def test_pruning():
    levels = [{"sparsity": 0.0, "test_error": 1.0}, {"sparsity": 0.985, "test_error": 1.5}]
    row = {"task": "lenet5_mnist", "arm": "gradual", "lam": 0.0, "seed": 3, "ended": True, "levels": levels}
    others = [{**row, "lam": 0.001, "ended": False}, {**row, "arm": "one_shot"}]
    assert rows(pruning_table([row, *others], {"lenet5_mnist": "0.8"}))[2:] == [
        ["LeNet-5, MNIST", "0.8", "none", "3", "1.00", "98.50", "1.50", "yes"],
        ["LeNet-5, MNIST", "–", "0.001", "3", "1.00", "98.50", "1.50", "no"],
    ]


def test_the_committed_page_is_that_of_the_committed_results(monkeypatch, tmp_path):
    """Where it is not: `python examples/paper_comparison.py`."""
    monkeypatch.setattr(sys, "argv", ["paper_comparison.py", "--output", str(tmp_path / "page.md")])
    paper_comparison.main()
    assert (tmp_path / "page.md").read_text() == (RESULTS / "paper_tables.md").read_text()


def test_numbers_of_one_shot_trainings_are_told(tmp_path):
    for name in ("published.json", "pruning_study/pruning_study.json"):
        content = json.loads((RESULTS / name).read_text())
        if "trainings" in content:
            content["trainings"].append({"arm": "random_structure"})
            arms = [row["arm"] for row in content["trainings"]]
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    page = paper_comparison.page(tmp_path)
    number = len(arms) - arms.count("gradual") - arms.count("dense")
    assert f"(Fig. 1 there): {number} [trainings](../results.md#pruning)." in page
    assert page.count(NO_RUN) == 8 + 6  # LeNet-5 on both sets, CIFAR-10
