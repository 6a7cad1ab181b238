"""The quickstart, with one epoch: what it prints and leaves."""

import re
import sys
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("tensorboard")

import quickstart
from lightning_psp.plotting.logs import read_log


def test_table_picture_and_logs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "--epochs", "1", "--seeds", "1", "--output", str(tmp_path)])
    quickstart.main()
    printed = capsys.readouterr().out
    header, _, *rows = (tmp_path / "quickstart.md").read_text().splitlines()
    assert header == "| technique | test error (%) | test loss | ⟨z²⟩ on test set |"
    assert len(rows) == 3
    for row in rows:
        label, error, loss, z2 = row.strip("| ").split(" | ")
        assert re.search(rf"^{re.escape(label)} +{error} +{loss} +{z2}$", printed, re.MULTILINE)
        assert 0 < float(error) <= 100
        assert 2 < float(loss) < 2.5  # ten classes, hardly trained
        assert 0 < float(z2) < 1
    assert (tmp_path / "quickstart.png").stat().st_size > 10_000
    assert read_log(tmp_path / "tensorboard" / "psp" / "seed_0", ["psp_z2_val/fc2"])


def test_the_address_groups_runs_by_technique():
    address = urlsplit(quickstart.tensorboard_address(["none", "l2", "psp"]))
    assert (address.netloc, address.fragment) == ("localhost:6006", "timeseries")
    query = parse_qs(address.query)
    kind, pattern = query["runColorGroup"][0].split(":", 1)
    assert kind == "regex"
    groups = [re.match(pattern, run).groups() for run in ("none/seed_0", "none/seed_2", "l2/seed_0", "psp/seed_1")]
    assert groups == [("none",), ("none",), ("l2",), ("psp",)]
    assert re.search(query["tagFilter"][0], "psp_z2_val/conv1")
