"""Tables and pictures that are made of results."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("torchvision")
pytest.importorskip("sklearn")

import lambda_sweep
import paper_tables
from support.distributions import add_histograms
from support.tables import markdown_table, mean_and_deviation

LAYERS = ("conv1", "fc1")


def histogram(width, seed=0):
    counts = np.histogram(np.random.default_rng(seed).normal(0, width, 5000), 400, (-1, 1))[0]
    beyond = 5000 - int(counts.sum())
    return {"limit": 1.0, "mean": 0.0, "deviation": width, "beyond": beyond, "counts": counts.tolist()}


def result(technique, seed, errors, held_out=0, **strength):
    configuration = {"set": "MNIST", "technique": technique, "seed": seed, "epochs": len(errors), "held_out": held_out}
    configuration.update({"lam": 0.0, "weight_decay": 0.0, "dropout": 0.0, **strength})
    return {
        "configuration": configuration,
        "versions": {"torch": "2.0"},
        "epochs": [
            {
                "error": error,
                "loss": error / 10,
                "train_loss": error / 100,
                "z2": 3 * error,
                "z2_layers": {layer: place + error for place, layer in enumerate(LAYERS)},
            }
            for error in errors
        ],
        "weights": {layer: histogram(0.1, seed) for layer in LAYERS},
        "potentials": {layer: histogram(0.5, seed) for layer in LAYERS},
    }


RESULTS = {
    "a": result("psp", 0, [5.0, 1.0], lam=1e-3),
    "b": result("psp", 1, [5.0, 2.0], lam=1e-3),
    "c": result("psp", 2, [9.0, 6.0, 6.0, 0.5, 7.0, 3.0], lam=1e-3),
    "d": result("none", 0, [6.0, 4.0]),
    "e": result("l2", 0, [6.0, 3.5], weight_decay=3e-4),
    "f": result("l2", 0, [9.0, 5.0, 4.0, 3.0], held_out=10, weight_decay=1e-3),
    "g": result("l2", 0, [9.0, 4.0, 4.0, 1.0], held_out=10, weight_decay=3e-4),
}


def test_the_paper_s_tables(monkeypatch, tmp_path, capsys):
    for name, each in RESULTS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(each))
    monkeypatch.setattr(sys, "argv", ["paper_tables.py", "--results", str(tmp_path), "--output", str(tmp_path / "out")])
    paper_tables.main()
    table = (tmp_path / "out/MNIST.md").read_text()
    assert table in capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    errors = [row for row in rows if len(row) == 7]
    assert errors[2:] == [
        ["no regularisation", "1", "5.00", "4.00", "12.00", "0.4000", "0.0400"],
        ["ℓ2 (weight decay 0.0003)", "1", "4.75", "3.50", "10.50", "0.3500", "0.0350"],
        # The last epochs: 1, 2 and 3, whose standard deviation with n - 1 is 1. Over all of them: 3, 3.5 and 4.5.
        ["PSP (λ = 0.001)", "3", "3.67 ± 0.76", "2.00 ± 1.00", "6.00 ± 3.00", "0.2000 ± 0.1000", "0.0200 ± 0.0100"],
    ]
    header, *layers = [[row[0], row[-1]] for row in rows if len(row) == 4 and row[0][:3] != "---"]
    assert header == ["⟨z²⟩ on the test set", "PSP (λ = 0.001)"]
    assert layers == [["conv1", "2.00 ± 1.00"], ["fc1", "3.00 ± 1.00"]]
    assert rows[-2:] == [["0.0003", "3.000"], ["0.001", "4.000"]]
    assert "4 epochs, one seed" in table
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert pictures == {"MNIST_curves.png", "MNIST_weights.png", "MNIST_potentials.png"}


def test_techniques_that_are_not_there_are_left_out(monkeypatch, tmp_path, capsys):
    (tmp_path / "d.json").write_text(json.dumps(RESULTS["d"]))
    monkeypatch.setattr(sys, "argv", ["paper_tables.py", "--results", str(tmp_path), "--output", str(tmp_path)])
    paper_tables.main()
    assert {path.name for path in tmp_path.glob("MNIST*")} == {"MNIST.md", "MNIST_curves.png"}
    assert "PSP" not in capsys.readouterr().out


def test_a_folder_without_results_is_an_error(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["paper_tables.py", "--results", str(tmp_path)])
    with pytest.raises(SystemExit):
        paper_tables.main()
    assert "found none in" in capsys.readouterr().err


def of_cifar10(technique, errors, layers=LAYERS, **strength):
    written = result(technique, 0, errors, network="ResNet-18", **strength)
    del written["weights"], written["potentials"]
    written["configuration"]["set"] = "CIFAR10"
    for epoch in written["epochs"]:
        epoch["z2_layers"] = {layer: value for layer, value in epoch["z2_layers"].items() if layer in layers}
    return written


def test_other_networks_and_kinds_of_psp(monkeypatch, tmp_path):
    results = {
        "a": of_cifar10("none", [9.0, 8.0]),
        "b": of_cifar10("l1", [9.0, 7.5], l1=1e-5),
        "c": of_cifar10("l2", [9.0, 7.0], weight_decay=5e-4),
        "d": of_cifar10("dropout", [9.0, 6.5], dropout="unit"),
        "e": of_cifar10("label_smoothing", [9.0, 6.0], label_smoothing=0.1),
        "f": of_cifar10("psp_paper", [9.0, 5.5], lam=1e-3),
        "g": of_cifar10("none_code", [9.0, 5.0]),
        "h": of_cifar10("psp_code", [9.0, 4.5], lam=1e-2, layers=("fc1",)),
        "i": RESULTS["d"],  # without a network: LeNet-5
    }
    for name, each in results.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(each))
    drawn = {}

    class Picture:
        def __init__(self, told):
            self.told = told

        def savefig(self, path):
            drawn[path.name] = self.told

    monkeypatch.setattr(
        paper_tables, "plot_curves", lambda curves, titles, **more: (Picture((titles["error"], list(curves))), None)
    )
    monkeypatch.setattr(sys, "argv", ["paper_tables.py", "--results", str(tmp_path), "--output", str(tmp_path / "out")])
    paper_tables.main()
    table = (tmp_path / "out/CIFAR10_ResNet-18.md").read_text()
    assert table.startswith("# ResNet-18 on CIFAR-10\n")
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    errors = {row[0]: row[3:5] for row in rows if len(row) == 7}
    assert {name: cells for name, cells in errors.items() if name[:3] not in ("---", "tec")} == {
        "no regularisation": ["8.00", "24.00"],
        "ℓ1 (1e-05)": ["7.50", "22.50"],
        "ℓ2 (weight decay 0.0005)": ["7.00", "21.00"],
        "dropout (unit)": ["6.50", "19.50"],
        "label smoothing (0.1)": ["6.00", "18.00"],
        "no regularisation, batch of the code": ["5.00", "15.00"],
        "PSP (λ = 0.001)": ["5.50", "16.50"],
        "PSP, code (λ = 0.01)": ["4.50", "13.50 (1 of 2 layers)"],
    }
    header, *layers = [[row[0], row[-1]] for row in rows if len(row) == 9 and row[0][:3] != "---"]
    assert header == ["⟨z²⟩ on the test set", "PSP, code (λ = 0.01)"]
    assert layers == [["conv1", "–"], ["fc1", "5.50"]]
    assert (tmp_path / "out/MNIST.md").read_text().startswith("# LeNet-5 on MNIST\n")
    beside = ["ℓ2 (weight decay 0.0005)", "dropout (unit)"]
    assert drawn == {
        "MNIST_curves.png": ("LeNet-5 on MNIST: test error", ["no regularisation"]),
        "CIFAR10_ResNet-18_psp_paper_curves.png": (
            "ResNet-18 on CIFAR-10: test error",
            ["no regularisation", *beside, "PSP (λ = 0.001)"],
        ),
        "CIFAR10_ResNet-18_psp_code_curves.png": (
            "ResNet-18 on CIFAR-10: test error",
            ["no regularisation, batch of the code", *beside, "PSP, code (λ = 0.01)"],
        ),
    }


def test_json_of_something_else_is_left_out_by_name(monkeypatch, tmp_path, capsys):
    (tmp_path / "d.json").write_text(json.dumps(RESULTS["d"]))
    sweep = {**RESULTS["d"], "configuration": {"network": "DigitsLeNet", "lam": 0.1, "seed": 0, "epochs": 2}}
    unknown = result("magic", 0, [1.0])
    foreign = [[1, 2], {"entries": []}, sweep, unknown, {**RESULTS["d"], "configuration": "d"}]
    for name, each in enumerate(foreign):
        (tmp_path / f"foreign{name}.json").write_text(json.dumps(each))
    (tmp_path / "foreign5.json").write_text("{")
    monkeypatch.setattr(sys, "argv", ["paper_tables.py", "--results", str(tmp_path), "--output", str(tmp_path)])
    paper_tables.main()
    printed = capsys.readouterr()
    assert printed.err.split()[-6:] == [f"foreign{name}.json" for name in range(6)]
    assert "| no regularisation | 1 | 5.00 | 4.00 |" in printed.out


def test_committed_tables_are_those_of_the_committed_trainings(monkeypatch, tmp_path):
    committed = Path(__file__).parents[2] / "docs/results/lenet5"
    monkeypatch.setattr(sys, "argv", ["paper_tables.py", "--results", str(committed), "--output", str(tmp_path)])
    paper_tables.main()
    made = {path.name: path for path in tmp_path.iterdir()}
    assert made.keys() == {path.name for path in committed.iterdir() if path.suffix != ".json"}
    for name, path in made.items():
        if path.suffix == ".md":
            assert path.read_text() == (committed / name).read_text()


def test_histograms_are_added():
    seeds = [histogram(0.4, seed) for seed in (0, 1)]
    added = add_histograms([{"fc": each} for each in seeds])
    np.testing.assert_array_equal(added["fc"]["counts"], np.add(*(each["counts"] for each in seeds)))
    assert added["fc"]["beyond"] == sum(each["beyond"] for each in seeds) > 50


def test_markdown():
    assert markdown_table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |\n"
    assert mean_and_deviation([1.0, 3.0], digits=3) == "2.000 ± 1.414"
    assert mean_and_deviation([2.5]) == "2.50"


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_the_sweep(monkeypatch, tmp_path, capsys):
    command = ["lambda_sweep.py", "--lams", "0.1", "10", "0.1", "--schedules", "constant", "linear", "--epochs", "2"]
    monkeypatch.setattr(sys, "argv", [*command, "--seeds", "2", "--milestones", "1", "--output", str(tmp_path)])
    lambda_sweep.main()
    table = (tmp_path / "DigitsLeNet.md").read_text()
    assert table in capsys.readouterr().out
    written = json.loads((tmp_path / "DigitsLeNet.json").read_text())
    entries = {(entry["schedule"], entry["lam"]): entry for entry in written["entries"]}
    assert list(entries) == [("constant", 0), ("constant", 0.1), ("constant", 10), ("linear", 0.1), ("linear", 10)]
    assert len(table.splitlines()) == 2 + len(entries)
    assert (tmp_path / "DigitsLeNet.png").exists()
    for (schedule, lam), entry in entries.items():
        for seed in range(2):
            name = f"DigitsLeNet_2epochs_drop1_{schedule}_{lam:g}_seed{seed}.json"
            training = json.loads((tmp_path / "trainings" / name).read_text())
            assert training["configuration"] == {
                "network": "DigitsLeNet",
                "lam": lam,
                "schedule": schedule,
                "seed": seed,
                "epochs": 2,
                "milestones": [1],
            }
            assert training["epochs"][1]["error"] == entry["error"][seed]
    # λ = 10 crushes the potentials; on its way to 0 it does so less.
    z2 = {key: np.mean(entry["z2"]) for key, entry in entries.items()}
    assert z2["constant", 10] < z2["linear", 10] < z2["constant", 0]

    monkeypatch.setattr(lambda_sweep, "train_once", lambda path, *others, **more: json.loads(path.read_text()))
    lambda_sweep.main()
    assert json.loads((tmp_path / "DigitsLeNet.json").read_text()) == written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--network", "LeNet300"], "LeNet300 learns MNIST and needs --data"),
        (["--data", "somewhere"], "DigitsLeNet learns the digits of scikit-learn and takes no --data"),
        (["--lams", "0", "0.1"], "expected λ above 0, beside which 0 is trained anyway, but got 0"),
        (["--lams", "inf"], "but got inf"),
    ],
)
def test_a_sweep_refuses(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lambda_sweep.py", *arguments])
    with pytest.raises(SystemExit):
        lambda_sweep.main()
    assert message in capsys.readouterr().err
