"""The gallery's pictures are those that its script draws, one or more of each function of `lightning_psp.plotting`."""

import importlib.util
import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from matplotlib import pyplot

import lightning_psp.plotting

DOCS = Path(__file__).parents[1] / "docs"


def loaded_script():
    spec = importlib.util.spec_from_file_location("gallery", DOCS / "tools" / "gallery.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = loaded_script()
PAGE = (DOCS / "gallery.md").read_text(encoding="utf-8")


def test_every_function_is_in_the_gallery():
    assert set(re.findall(r"`(plot_\w+)`", PAGE)) == set(lightning_psp.plotting.__all__)


def test_every_picture_is_shown():
    assert re.findall(r"\(images/gallery/(\w+)\.png\)", PAGE) == list(SCRIPT.DRAWN)
    assert {file.stem for file in SCRIPT.PICTURES.iterdir()} == set(SCRIPT.DRAWN)


@pytest.mark.parametrize("name", SCRIPT.DRAWN)
def test_the_script_draws_what_is_there(name, tmp_path):
    """Of the same size: other versions of matplotlib draw other pixels, and the oldest round the size down."""
    pyplot.switch_backend("agg")
    figure = SCRIPT.DRAWN[name]()
    figure.savefig(tmp_path / "picture.png", dpi=100)
    drawn, kept = (pyplot.imread(path).shape for path in (tmp_path / "picture.png", SCRIPT.PICTURES / f"{name}.png"))
    pyplot.close("all")
    assert all(0 <= now - before <= 1 for now, before in zip(kept, drawn, strict=True))
