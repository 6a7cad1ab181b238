"""The reproduction's trainings: broken off and taken up, skipped once done, and what they write."""

import json
import sys

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("sklearn")

import reproduce_lenet5
import resumable
from tests.examples.idx import write_sets

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


class Interruption(Exception):
    pass


@pytest.fixture
def data(tmp_path):
    write_sets(tmp_path / "data")
    return tmp_path / "data"


def reproduce(monkeypatch, data, results, *arguments):
    monkeypatch.setattr(resumable, "silence_lightning", lambda: None)
    command = ["reproduce_lenet5.py", "--data", str(data), "--results", str(results), "--accelerator", "cpu"]
    monkeypatch.setattr(sys, "argv", [*command, *arguments])
    reproduce_lenet5.main()
    return {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}


def without_times(result):
    return {**result, "epochs": [{**epoch, "seconds": None} for epoch in result["epochs"]]}


def test_a_training_that_was_broken_off_ends_as_one_that_was_not(monkeypatch, tmp_path, data):
    arguments = ["--sets", "MNIST", "--techniques", "dropout", "--epochs", "4", "--seeds", "1"]
    unbroken = reproduce(monkeypatch, data, tmp_path / "unbroken", *arguments)

    update = reproduce_lenet5.tqdm.update

    def break_off(bar, epochs=1):
        update(bar, epochs)
        if bar.n == 3:
            raise Interruption

    with monkeypatch.context() as patch, pytest.raises(Interruption):
        patch.setattr(reproduce_lenet5.tqdm, "update", break_off)
        reproduce(patch, data, tmp_path / "broken", *arguments)
    assert not list((tmp_path / "broken").glob("*.json"))
    begun = torch.load(tmp_path / "broken/checkpoints/MNIST_dropout_seed0/last.ckpt", weights_only=False)
    assert begun["epoch"] == 1  # the third epoch was not done
    broken = reproduce(monkeypatch, data, tmp_path / "broken", *arguments)

    (name,) = unbroken
    assert without_times(broken[name]) == without_times(unbroken[name])
    assert len(broken[name]["epochs"]) == 4
    assert not list((tmp_path / "broken/checkpoints").iterdir())
