"""The table over small tasks: what is trained, chosen and written, and that what is done is not done again."""

import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("sklearn")

import where_psp_helps
from lightning_psp import record_potentials
from support.small_tasks import TASKS
from where_psp_helps import LAMS, MEASURES, TECHNIQUES, Training, calibration_error, candidates, tables, tune

START = Training("digits_cnn", "none", 0.0, 0.0, 0.0, 0, 1)


def run(monkeypatch, folder):
    arguments = ["--quick", "--tasks", "table_mlp", "--output", str(folder)]
    monkeypatch.setattr(sys, "argv", ["where_psp_helps.py", *arguments])
    where_psp_helps.main()
    return folder / "quick"


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    folder = run(monkeypatch, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in folder.glob("table_mlp_*.json")}
    assert len(written) == len(TECHNIQUES)
    results = json.loads((folder / "where_psp_helps.json").read_text())
    assert [row["technique"] for row in results["rows"]] == list(TECHNIQUES)
    assert all(len(row[name]) == 1 for row in results["rows"] for name in MEASURES)
    assert (folder / "where_psp_helps.md").read_text() == tables(results["rows"])
    run(monkeypatch, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("table_mlp_*.json")} == written


@pytest.mark.parametrize("name", TASKS)
def test_networks_and_data_of_a_task(name):
    task, data = TASKS[name], TASKS[name].data(0)
    parts = (data.train_set, data.validation_set, data.test_set)
    samples = [tuple(inputs.flatten().tolist()) for part in parts for inputs in part.tensors[0]]
    assert len(set(samples)) == len(samples)
    inputs = data.train_set.tensors[0][:7]
    assert int(data.train_set.tensors[1].max()) == task.classes - 1
    module = task.module(task.network(0.5), 0.0)
    with record_potentials(module) as potentials:
        logits = module(inputs)
    assert logits.shape == (7, task.classes)
    assert len(potentials.layers) >= 2
    shares = {part.p for part in module.modules() if isinstance(part, torch.nn.Dropout)}
    assert shares == {0.5}


def test_strengths_that_are_tried():
    chosen = {"weight_decay": Training("digits_cnn", "weight_decay", 0.003, 0.0, 0.0, 0, 1)}
    tried = {technique: candidates(START, technique, chosen, quick=False) for technique in TECHNIQUES}
    assert tried["none"] == [START]
    assert [each.lam for each in tried["psp"]] == [each.lam for each in tried["both"]] == list(LAMS)
    assert {each.weight_decay for each in tried["both"]} == {0.003}
    assert {len(each) for technique, each in tried.items() if technique != "none"} == {3}
    everything = [each for several in tried.values() for each in several]
    assert len({each.file for each in everything}) == len(everything)


class Options:
    seeds, epochs, quick, output = 2, 1, False, None


def test_the_validation_error_decides_and_the_loss_between_equals(monkeypatch):
    validated = {0.01: (2.0, 0.1), 0.1: (1.0, 0.3), 1.0: (1.0, 0.2)}

    def trained(training, folder, bar):
        error, loss = validated.get(training.lam, (3.0, 0.3))
        epochs = [{"error": 0.0, "loss": 0.0}, {"error": error, "loss": loss}]
        return {"epochs": epochs, "test_error": training.lam, "test_loss": 0.1 + training.seed, "ece": 1.0}

    monkeypatch.setattr(where_psp_helps, "run", trained)
    every = tune("digits_cnn", Options, None)
    assert len(every) == 1 + 4 * 3
    rows = {row["technique"]: row for row in every if row["chosen"]}
    assert rows.keys() == TECHNIQUES.keys()
    assert rows["psp"]["strength"] == "λ 1"
    assert rows["psp"]["test_error"] == [1.0, 1.0]
    assert rows["psp"]["test_loss"] == [0.1, 1.1]
    written = tables(every)
    table = written.split("\n\n")[1]
    assert table.splitlines()[2].split(" | ")[1:3] == ["**0.00 ± 0.00**", "**0.00 ± 0.00**"]
    assert table.splitlines()[2].endswith("| 1.00 ± 0.00 | 1.00 ± 0.00 |")
    by_lam = [line.strip("| ").split(" | ") for line in written.split("\n\n")[-1].splitlines()]
    assert by_lam[0] == ["task", "none", *(f"λ = {lam:g}" for lam in LAMS)]
    assert by_lam[2][1:3] == ["0.00 · 0.600 · 1.00", "0.01 · 0.600 · 1.00"]


def test_committed_tables_are_those_of_the_committed_results():
    committed = Path(__file__).parents[2] / "docs/results/where_psp_helps"
    rows = json.loads((committed / "where_psp_helps.json").read_text())["rows"]
    assert (committed / "where_psp_helps.md").read_text() == tables(rows)
    assert list(dict.fromkeys(row["task"] for row in rows)) == list(TASKS)


def test_calibration_error_by_hand():
    """Two bins: confidence 0.9 with 3 of 4 right, and 0.6 with 1 of 2 right."""
    confidences = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.6, 0.6])
    inputs = torch.stack([confidences, 1 - confidences], dim=1).log()
    labels = torch.tensor([0, 0, 0, 1, 0, 1])
    expected = 100 * (4 / 6 * abs(0.9 - 3 / 4) + 2 / 6 * abs(0.6 - 1 / 2))
    assert calibration_error(torch.nn.Identity(), [(inputs, labels)], 2) == pytest.approx(expected, rel=1e-5)
