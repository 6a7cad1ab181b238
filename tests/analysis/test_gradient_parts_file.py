"""The file that the parts of the PSP gradient are saved to."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_psp.analysis import GradientParts, psp_gradient_parts
from tests.support.networks import LeNet5
from tests.support.two_layers import SAMPLES, random


def test_large_tensors_are_shown_by_their_shapes():
    parts = psp_gradient_parts(LeNet5().double(), random(SAMPLES, 1, 28, 28))
    assert "norms=tensor of [" in repr(parts)
    assert "parameters=('conv1.weight', " in repr(parts)


def test_save_and_load(tmp_path):
    parts = psp_gradient_parts(LeNet5().double(), random(SAMPLES, 1, 28, 28), reduction="sum", output=False)
    assert parts.shares.isnan().any()
    path = tmp_path / "parts.json"
    parts.save(path)
    read = GradientParts.load(path)
    for name, value in vars(parts).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(getattr(read, name), value, rtol=0, atol=0, equal_nan=True)
        else:
            assert getattr(read, name) == value
    json.loads(path.read_text(), parse_constant=pytest.fail)  # NaN is no JSON


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"layers": []}', b"no JSON", b"PK\x03\x80"])
def test_load_refuses_other_files(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a file of `GradientParts\.save` but got .*other\.json"):
        GradientParts.load(path)


def test_a_file_is_replaced_only_by_a_whole_one(tmp_path, monkeypatch):
    path = tmp_path / "parts.json"
    psp_gradient_parts(nn.Linear(2, 1), torch.ones(3, 2)).save(path)
    before, write = path.read_text(), Path.write_text

    def interrupted(self, text, **settings):
        write(self, text[:20], **settings)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", interrupted)
        with pytest.raises(KeyboardInterrupt):
            psp_gradient_parts(nn.Linear(2, 1), torch.ones(3, 2)).save(path)
    assert path.read_text() == before
    assert [*tmp_path.iterdir()] == [path]
