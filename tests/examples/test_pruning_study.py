"""The pruning study on the digits, with short trainings: what each arm begins from, and what is written."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("torchvision")
pytest.importorskip("sklearn")

import pruning_study
from pruning_study import ONE_SHOT_ARMS, SMALL, spread
from support.pruning_report import arms_table, curves, gradual_table, levels_table
from tests.support.processes.forked import SERVER

pytestmark = pytest.mark.first

SHORT = {"digits": replace(SMALL["digits"], patience=1, epochs=2, levels=2, most_epochs=40, learning_rate=0.3)}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder of a study that was run."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        run(patch, folder)
    return folder


def run(patch, folder, *more):
    arguments = ["--small", "--workers", "2", "--accelerator", "cpu", "--results", str(folder), *more]
    patch.setattr(pruning_study, "SMALL", SHORT)
    patch.setattr(pruning_study.multiprocessing, "get_context", lambda _: SERVER)  # which starts sooner
    patch.setattr(sys, "argv", ["pruning_study.py", *arguments])
    pruning_study.main()


def trainings(folder):
    return json.loads((folder / "pruning_study.json").read_text())["trainings"]


def stored(folder, name, level=0):
    return torch.load(folder / name / f"level{level:02}.pt", weights_only=True)


def test_every_arm_is_trained_at_the_same_sparsities(results):
    rows = trainings(results)
    assert all(row["accelerator"].endswith("Accelerator") for row in rows)
    gradual = next(row for row in rows if row["arm"] == "gradual" and not row["lam"])
    sparsities = [level["sparsity"] for level in gradual["levels"]]
    assert sparsities[0] == 0
    assert len(sparsities) > 2
    assert sparsities == sorted(set(sparsities))
    for arm in ONE_SHOT_ARMS:
        found = {(row["level"], row["seed"], row["levels"][0]["sparsity"]) for row in rows if row["arm"] == arm}
        assert found == {(level, seed, sparsities[level]) for level in spread(sparsities, 2) for seed in (0, 1)}


def test_masks_are_those_of_the_arm_and_hold(results):
    rows = trainings(results)
    highest = max(row["level"] for row in rows)
    first = stored(results, "digits_gradual_seed0", highest)["masks"]
    end = f"_level{highest:02}_seed1"
    masks = {arm: stored(results, f"digits_{arm}{end}")["masks"] for arm in ONE_SHOT_ARMS}
    for arm in ("lottery_ticket", "random_initialisation"):
        assert all(torch.equal(mask, first[name]) for name, mask in masks[arm].items())
    random = masks["random_structure"]
    assert {name: int(mask.sum()) for name, mask in random.items()} == {
        name: int(mask.sum()) for name, mask in first.items()
    }
    assert any(not torch.equal(mask, first[name]) for name, mask in random.items())
    assert sum(int(mask.sum()) for mask in masks["one_shot"].values()) == sum(
        int(mask.sum()) for mask in first.values()
    )
    for arm in ONE_SHOT_ARMS:
        weights = stored(results, f"digits_{arm}{end}")["weights"]
        assert all(torch.equal(weights[name] != 0, mask) for name, mask in masks[arm].items())


class InThisProcess(ThreadPoolExecutor):
    """In place of further processes, where there is nothing to train."""

    def __init__(self, workers, mp_context):
        super().__init__(workers)


def test_what_is_done_is_not_done_again(results, monkeypatch):
    monkeypatch.setattr(pruning_study, "ProcessPoolExecutor", InThisProcess)
    before = {path: path.stat().st_mtime_ns for path in results.glob("digits_*.json")}
    text = (results / "digits.md").read_text()
    run(monkeypatch, results)
    assert {path: path.stat().st_mtime_ns for path in results.glob("digits_*.json")} == before
    assert (results / "digits.md").read_text() == text
    assert (results / "digits.png").stat().st_size > 10_000


def test_levels_are_equal_factors_apart():
    assert spread([0.0, 0.5, 0.9, 0.99, 0.999, 0.9999], 2) == [3, 5]
    assert spread([0.0, 0.2], 4) == [1]
    assert spread([0.0], 4) == []
    assert spread([0.0, 0.1, 0.2, 0.99], 3) == [2, 3]


def test_tables_hold_the_errors_of_their_arm():
    def level(sparsity, error, off=0):
        units = {"off": {"fc": off}, "on": {"fc": 1}, "units": {"fc": 9}}
        return {"sparsity": sparsity, "test_error": error, "epoch": int(10 * error), **units}

    settings = {"task": "digits", "lam": 0.0, "level": 0, "seed": 0}
    rows = [
        {**settings, "arm": "gradual", "levels": [level(0.0, 1.0), level(0.5, 2.0), level(0.9, 3.0, off=4)]},
        {**settings, "arm": "gradual", "lam": 0.3, "ended": False, "levels": [level(0.0, 1.5), level(0.8, 2.5)]},
        *(
            {**settings, "arm": arm, "level": 2, "seed": seed, "levels": [level(0.9, 10.0 * number + 2 * seed)]}
            for number, arm in enumerate(ONE_SHOT_ARMS)
            for seed in (0, 1)
        ),
    ]
    cells = ["90.00", "3.00", "1.00 ± 1.41", "11.00 ± 1.41", "21.00 ± 1.41", "31.00 ± 1.41"]
    assert arms_table(rows).splitlines()[2] == f"| {' | '.join(cells)} |"
    assert gradual_table(rows).splitlines()[2:] == [
        "| none | 0 | 1.00 | 90.00 | 3.00 | 5 of 9 | 31 |",
        "| λ = 0.3 | 0 | 1.50 | 80.00 | 2.50 | 1 of 9 | 26, not ended |",
    ]
    assert levels_table(rows).splitlines()[2:] == [
        *("| none | 0 | 0.00 | 1.00 |", "| none | 0 | 50.00 | 2.00 |", "| none | 0 | 90.00 | 3.00 |"),
        *("| λ = 0.3 | 0 | 0.00 | 1.50 |", "| λ = 0.3 | 0 | 80.00 | 2.50 |"),
    ]
    drawn = curves(rows)
    assert drawn["LOBSTER"] == [(0.0, 1.0), (0.5, 2.0), (0.9, 3.0)]
    assert drawn["random masks"] == [(0.9, 20.0), (0.9, 22.0)]


def test_what_there_is_so_far_is_reported(results, monkeypatch, tmp_path):
    gradual = results / "digits_gradual_seed0.json"
    levels = json.loads(gradual.read_text())["levels"]
    checkpoint = tmp_path / "checkpoints/digits_gradual_seed0/last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    torch.save({"callbacks": {"LevelRecorder": {"levels": levels[:2], "best": {}}}}, checkpoint)
    (tmp_path / "digits_dense_seed1.json").write_text((results / "digits_dense_seed1.json").read_text())
    run(monkeypatch, tmp_path, "--so-far")
    found = {row["arm"]: (row["ended"], row["levels"]) for row in trainings(tmp_path)}
    assert found.keys() == {"dense", "gradual"}
    assert found["gradual"] == (False, levels[:2])
    assert found["dense"][0]
    assert "not ended" in (tmp_path / "digits.md").read_text()
