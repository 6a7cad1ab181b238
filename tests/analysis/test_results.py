"""Results are read as they were written, and files that hold something else are refused."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_psp.analysis import HessianSpectrum
from lightning_psp.analysis.results import Result


@dataclass(frozen=True, eq=False)
class Measured(Result):
    names: tuple[str, ...] = ("loss", "error")
    values: dict[str, Tensor] = field(default_factory=dict)
    size: tuple[int, int] = (3, 2)
    loss: float = 0.1
    note: str | None = None


@dataclass(frozen=True)
class Other(Result):
    loss: float = 0.1


def test_large_tensors_are_shown_by_their_shapes():
    spectrum = HessianSpectrum(torch.tensor([2.0, 1 / 3]), torch.zeros(2), {"weight": torch.zeros(2, 3, 4)}, 7)
    assert repr(spectrum) == (
        "HessianSpectrum(values=tensor([2.0, 0.333333]), residuals=tensor([0.0, 0.0]),"
        " vectors={'weight': tensor of [2, 3, 4]}, products=7)"
    )


def test_everything_is_read_as_it_was_written(tmp_path):
    values = {
        "single": torch.randn(3, 2),
        "double": torch.tensor([float("nan"), float("inf"), 1 / 3], dtype=torch.float64),
        "numbers": torch.arange(3),
    }
    written = Measured(values=values)
    written.save(tmp_path / "measured.pt")
    read = Measured.load(str(tmp_path / "measured.pt"))
    assert {**vars(read), "values": None} == {**vars(written), "values": None}
    assert read.values.keys() == values.keys()
    for name, value in values.items():
        assert read.values[name].dtype == value.dtype
        assert torch.equal(read.values[name].nan_to_num(), value.nan_to_num())
    assert read.values["double"][0].isnan()


def test_a_part_of_a_tensor_is_written_without_the_rest(tmp_path):
    large = nn.Parameter(torch.randn(1_000_000))
    Measured(values={"part": large[:2]}).save(tmp_path / "part.pt")
    assert (tmp_path / "part.pt").stat().st_size < 10_000
    part = Measured.load(tmp_path / "part.pt").values["part"]
    assert torch.equal(part, large.detach()[:2])
    assert not part.requires_grad


def test_a_file_is_replaced_only_by_a_whole_one(tmp_path, monkeypatch):
    path = tmp_path / "measured.pt"
    Measured(loss=1.0).save(path)

    def interrupted(content, path):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Measured(loss=2.0).save(path)
    assert Measured.load(path).loss == 1.0
    assert list(tmp_path.iterdir()) == [path]
    Measured(loss=2.0).save(path)
    assert Measured.load(path).loss == 2.0


@pytest.mark.parametrize("value", [np.float64(1), {1, 2}, nn.ReLU(), Path("."), print])
def test_fields_that_would_be_pickled_are_refused(tmp_path, value):
    with pytest.raises(TypeError, match=f"Expected field `loss` to hold .* but got {type(value).__name__}"):
        Measured(loss=[value]).save(tmp_path / "measured.pt")
    assert not list(tmp_path.iterdir())


def write_other_result(path):
    Other().save(path)


def write_code(path):
    torch.save({"result": "Measured", "fields": print}, path)


def write_pickle(path):
    path.write_bytes(pickle.dumps({"result": "Measured"}, protocol=2))


def write_other_fields(path):
    torch.save({"result": "Measured", "fields": {"loss": 0.1}}, path)


def write_list(path):
    torch.save([1, 2], path)


def write_text(path):
    path.write_text("loss\n")


def write_what_is_no_text(path):
    path.write_bytes(b"X\x01\x00\x00\x00\xff.")


def write_nothing(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "write",
    [
        write_other_result,
        write_code,
        write_pickle,
        write_other_fields,
        write_list,
        write_text,
        write_what_is_no_text,
        write_nothing,
    ],
)
def test_other_files_are_refused(tmp_path, write):
    path = tmp_path / "file.pt"
    write(path)
    with pytest.raises(
        ValueError, match=r"Expected argument `path` to be a file of `Measured.save` but got '.*file.pt'"
    ):
        Measured.load(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        Measured.load(tmp_path / "none.pt")
