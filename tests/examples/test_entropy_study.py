"""The arguments of the study of the soft entropy term."""

import sys

import pytest

pytest.importorskip("torchvision")
pytest.importorskip("sklearn")

import entropy_study


def test_a_folder_without_mnist_is_an_error_before_anything_is_trained(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(entropy_study, "measure", lambda *_: pytest.fail("a training was started"))
    monkeypatch.setattr(
        sys, "argv", ["entropy_study.py", "--data", str(tmp_path), "--output", str(tmp_path / "results")]
    )
    with pytest.raises(SystemExit, match="2"):
        entropy_study.main()
    assert f"--data {tmp_path} has no folder MNIST" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
