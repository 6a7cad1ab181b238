"""The geometry study on a made-up pruning study of the digits: what is written, and that it is not computed again."""

import json
import sys

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")
pytest.importorskip("torchvision")
pytest.importorskip("sklearn")

import geometry_study
from geometry_study import load_solutions
from lightning_psp.analysis import HessianSpectrum, LossPlane, TraceEstimate
from support.data import Digits
from support.models import DigitsLeNet
from tests.support.pruning_folder import write_training

pytestmark = pytest.mark.first

IMAGES, HESSIAN_IMAGES, POINTS = 30, 20, 7


@pytest.fixture(scope="module")
def solutions(tmp_path_factory):
    """A folder as `pruning_study.py` leaves it: LOBSTER's two levels, and tickets at both."""
    folder = tmp_path_factory.mktemp("pruning")
    gradual = {"task": "digits", "arm": "gradual", "seed": 0}
    ticket = {"task": "digits", "arm": "lottery_ticket", "seed": 0}
    rows = [
        write_training(folder, DigitsLeNet(), {**gradual, "lam": 0.0, "level": 0}, [0.0, 0.3, 0.8]),
        write_training(folder, DigitsLeNet(), {**gradual, "lam": 0.3, "level": 0}, [0.0, 0.5]),
        write_training(folder, DigitsLeNet(), {**gradual, "lam": 0.0, "level": 0, "seed": 1}, [0.0]),
        write_training(folder, DigitsLeNet(), {**ticket, "lam": 0.0, "level": 1}, [0.3]),
        write_training(folder, DigitsLeNet(), {**ticket, "lam": 0.0, "level": 2}, [0.8]),
    ]
    (folder / "pruning_study.json").write_text(json.dumps({"trainings": rows}))
    return folder


@pytest.fixture(scope="module")
def results(solutions, tmp_path_factory):
    """The folder of a study that was run."""
    folder = tmp_path_factory.mktemp("geometry")
    with pytest.MonkeyPatch.context() as patch:
        run(patch, solutions, folder)
    return folder / "digits"


def run(patch, solutions, folder, points=POINTS):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    counts = ["--images", str(IMAGES), "--points", str(points), "--eigenvalues", "2"]
    counts += ["--hessian-images", str(HESSIAN_IMAGES)]
    folders = ["--solutions", str(solutions), "--results", str(folder)]
    patch.setattr(sys, "argv", ["geometry_study.py", "--small", *counts, *folders])
    geometry_study.main()
    pyplot.close("all")


def measured_by_hand(weights, images, labels):
    """Loss, error and ⟨z²⟩ of the network by its formulas, in float64."""
    w = {name.removeprefix("network."): value.double() for name, value in weights.items()}
    z1 = F.conv2d(images.double(), w["conv1.weight"], w["conv1.bias"], padding=1)
    z2 = F.conv2d(F.max_pool2d(z1.clamp(min=0), 2), w["conv2.weight"], w["conv2.bias"], padding=1)
    z3 = F.max_pool2d(z2.clamp(min=0), 2).flatten(1) @ w["fc1.weight"].T + w["fc1.bias"]
    z4 = z3.clamp(min=0) @ w["fc2.weight"].T + w["fc2.bias"]
    return {
        "loss": -z4.log_softmax(1)[torch.arange(len(labels)), labels].mean().item(),
        "error": (z4.argmax(1) != labels).double().mean().item(),
        "z2": sum(z.square().mean().item() for z in (z1, z2, z3, z4)) / 4,
    }


def stored(solutions, name, level):
    return torch.load(solutions / name / f"level{level:02}.pt", weights_only=True)


def test_the_solutions_are_those_of_the_highest_sparsity(solutions):
    found = load_solutions(solutions, "digits")
    for solution, (name, level) in zip(
        found.values(), (("digits_gradual_seed0", 2), ("digits_lottery_ticket_level02_seed0", 0)), strict=True
    ):
        file = stored(solutions, name, level)
        assert solution.weights.keys() == DigitsLeNet().state_dict().keys()
        assert all(torch.equal(value, file["weights"][f"network.{key}"]) for key, value in solution.weights.items())
        assert all(torch.equal(value, file["masks"][f"network.{key}"]) for key, value in solution.masks.items())
        assert solution.sparsity == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize("part", ["train", "test"])
def test_planes_and_lines_have_the_values_of_the_solutions(results, solutions, part):
    data = Digits()
    images, labels = (each[:IMAGES] for each in (data.train_set if part == "train" else data.test_set).tensors)
    plane, line = (LossPlane.load(results / f"{kind}_{part}.pt") for kind in ("plane", "line"))
    assert plane.values["loss"].shape == (POINTS, POINTS)
    assert set(line.values) == {"loss", "error", "z2", "entropy", "entropy2"}
    ends = {1: ("digits_gradual_seed0", 2), 5: ("digits_lottery_ticket_level02_seed0", 0)}
    for column, (name, level) in ends.items():
        expected = measured_by_hand(stored(solutions, name, level)["weights"], images, labels)
        for measure, value in expected.items():
            assert plane.values[measure][3, column].item() == pytest.approx(value, rel=1e-5)
            assert line.values[measure][0, column].item() == pytest.approx(value, rel=1e-5)


def test_the_summary_is_of_the_test_images(results, solutions):
    images, labels = (each[:IMAGES] for each in Digits().test_set.tensors)
    summary = json.loads((results / "geometry_study.json").read_text())
    line = LossPlane.load(results / "line_test.pt")
    ends = {"gradual": ("digits_gradual_seed0", 2, 1), "one-shot": ("digits_lottery_ticket_level02_seed0", 0, 5)}
    for label, (name, level, column) in ends.items():
        expected = measured_by_hand(stored(solutions, name, level)["weights"], images, labels)
        row = summary[label]
        assert row["test_loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert row["test_error"] == pytest.approx(100 * expected["error"], rel=1e-5)
        assert sum(row["z2"].values()) / 4 == pytest.approx(expected["z2"], rel=1e-5)
        for order in ("entropy", "entropy2"):  # hidden layers alone
            assert list(row[order]) == ["conv1", "conv2", "fc1"]
            assert sum(row[order].values()) / 3 == pytest.approx(line.values[order][0, column].item(), rel=1e-9)


def test_the_spectrum_is_that_of_the_weights_that_are_left(results, solutions):
    summary = json.loads((results / "geometry_study.json").read_text())
    for label, (name, level) in {
        "gradual": ("digits_gradual_seed0", 2),
        "one-shot": ("digits_lottery_ticket_level02_seed0", 0),
    }.items():
        spectrum = HessianSpectrum.load(results / f"spectrum_{label}.pt")
        assert len(spectrum.values) == 2
        assert summary[label]["eigenvalues"] == spectrum.values.tolist()
        assert summary[label]["trace"][0] == TraceEstimate.load(results / f"trace_{label}.pt").value
        for key, mask in stored(solutions, name, level)["masks"].items():
            assert not spectrum.vectors[key.removeprefix("network.")][:, ~mask].any()
        assert curvature(stored(solutions, name, level)["weights"], spectrum) == pytest.approx(
            spectrum.values[0].item(), rel=1e-3
        )


def curvature(weights, spectrum):
    """Second derivative of the loss on the first training images along the first vector, in float64."""
    images, labels = (each[:HESSIAN_IMAGES] for each in Digits().train_set.tensors)
    start = {name.removeprefix("network."): value.double() for name, value in weights.items()}
    network = DigitsLeNet().double()
    along = {name: vector[0].double() for name, vector in spectrum.vectors.items()}

    def loss(step):
        moved = {name: value + step * along.get(name, 0.0) for name, value in start.items()}
        return F.cross_entropy(torch.func.functional_call(network, moved, (images.double(),)), labels)

    return torch.func.grad(torch.func.grad(loss))(torch.zeros((), dtype=torch.float64)).item()


def test_tables_and_pictures_are_there(results):
    text = (results / "geometry_study.md").read_text()
    assert "| on the test images | gradual | one-shot |" in text
    assert "| pruned (%) | 80.0" in text
    assert f"| largest eigenvalue of the Hessian, {HESSIAN_IMAGES} training images |" in text
    for name in ("loss", "potentials", "line", "spectrum"):
        assert (results / f"{name}.png").stat().st_size > 10_000
    assert not list(results.glob("*.part"))


def test_what_is_there_is_not_computed_again(results, solutions, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("computed again")

    for function in ("loss_plane", "hessian_eigenvalues", "hessian_trace"):
        monkeypatch.setattr(geometry_study, function, refuse)
    before = (results / "geometry_study.md").read_text()
    run(monkeypatch, solutions, results.parent)
    assert (results / "geometry_study.md").read_text() == before


def test_results_of_another_call_are_not_taken_for_those_of_this_one(results, solutions, monkeypatch):
    with pytest.raises(ValueError, match=r"'points': 13.* but got one with .*'points': 7.* remove it"):
        run(monkeypatch, solutions, results.parent, points=13)


def test_solutions_that_are_missing_name_the_script(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"run `pruning_study\.py --small`"):
        run(monkeypatch, tmp_path, tmp_path / "results")
    (tmp_path / "pruning_study.json").write_text('{"trainings": []}')
    with pytest.raises(FileNotFoundError, match=r"run `pruning_study\.py --data FOLDER --tasks lenet5_mnist`"):
        load_solutions(tmp_path, "lenet5_mnist")


def test_points_without_the_solutions_among_them_are_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, tmp_path, points=10)
    assert "expected 7, 13, 19, 25 or more in sixes" in capsys.readouterr().err
