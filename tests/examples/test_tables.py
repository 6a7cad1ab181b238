"""Tables and pictures that are made of results."""

import json
import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("torchvision")
pytest.importorskip("sklearn")

import lambda_sweep
import paper_tables
from curves import Curves, plot_curves
from distribution_figure import add_histograms, plot_distributions
from tables import markdown_table, mean_and_deviation

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
    "c": result("psp", 2, [0.5, 3.0], lam=1e-3),
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
    errors = [row for row in rows if len(row) == 6]
    assert errors[2:] == [
        ["no regularisation", "1", "4.00", "12.00", "0.4000", "0.0400"],
        ["ℓ2 (weight decay 0.0003)", "1", "3.50", "10.50", "0.3500", "0.0350"],
        # The last epochs: 1, 2 and 3, whose standard deviation with n - 1 is 1.
        ["PSP (λ = 0.001)", "3", "2.00 ± 1.00", "6.00 ± 3.00", "0.2000 ± 0.1000", "0.0200 ± 0.0100"],
    ]
    assert ["PSP (λ = 0.001)", "2.00 ± 1.00", "3.00 ± 1.00"] in rows
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


def test_histograms_are_added_and_drawn_as_densities(tmp_path, monkeypatch):
    seeds = [histogram(0.4, seed) for seed in (0, 1)]
    added = add_histograms([{"fc": each} for each in seeds])
    expected = np.add(*(each["counts"] for each in seeds))
    np.testing.assert_array_equal(added["fc"]["counts"], expected)
    beyond = added["fc"]["beyond"]
    assert beyond == sum(each["beyond"] for each in seeds) > 50

    drawn = []
    stairs = "matplotlib.axes.Axes.stairs"
    monkeypatch.setattr(stairs, lambda axes, values, edges, **style: drawn.append((values, edges)))
    monkeypatch.setattr("matplotlib.axes.Axes.set_xlim", lambda axes, *limits: drawn.append(limits))
    narrow = {"limit": 1.0, "beyond": 0, "counts": [0] * 195 + [10] * 10 + [0] * 195}
    plot_distributions({"ℓ2": added, "PSP": {"fc": narrow}}, "weight", tmp_path / "densities.png")
    *drawn, limits = drawn
    assert limits == (-1.0, 1.0)
    for (density, edges), counts, number in zip(
        drawn, (expected, narrow["counts"]), (beyond + expected.sum(), 100), strict=True
    ):
        widths = np.diff(edges)
        assert np.allclose(widths, widths[0])
        assert (density * widths).sum() == pytest.approx(np.sum(counts) / number)
        for left, right, height in zip(edges, edges[1:], density, strict=False):
            inside = (np.linspace(-1, 1, 401)[:-1] > left - 1e-9) & (np.linspace(-1, 1, 401)[1:] < right + 1e-9)
            assert height == pytest.approx(np.asarray(counts)[inside].sum() / number / (right - left))


@pytest.mark.parametrize(
    ("seeds", "caption"), [((1, 1), ""), ((3, 3, 3, 3), "mean of 3 trainings"), ((1, 3), "mean of 1 or 3 trainings")]
)
def test_curves_of_two_and_four_techniques(seeds, caption, tmp_path, monkeypatch):
    captions = []
    monkeypatch.setattr("matplotlib.figure.Figure.supxlabel", lambda figure, text, **style: captions.append(text))
    techniques = [Curves(str(each), [[2.0, 1.0]] * number, [[3.0, 2.0]] * number) for each, number in enumerate(seeds)]
    plot_curves(techniques, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert ("Lines: " in captions[0]) == bool(caption)
    assert caption in captions[0]


def test_markdown():
    assert markdown_table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |\n"
    assert mean_and_deviation([1.0, 3.0], digits=3) == "2.000 ± 1.414"
    assert mean_and_deviation([2.5]) == "2.50"


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_the_sweep(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(lambda_sweep, "silence_lightning", lambda: None)
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
