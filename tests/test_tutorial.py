"""The tutorial's notebook runs, has the outputs that its code gives, and becomes a page."""

import copy
import importlib.util
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")
pytest.importorskip("sklearn")

import lightning_psp.plotting

pytestmark = pytest.mark.first

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "tutorial.ipynb").read_text(encoding="utf-8")
NOTEBOOK = json.loads(TEXT)


def loaded_tool():
    spec = importlib.util.spec_from_file_location("notebook", DOCS / "tools" / "notebook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = loaded_tool()


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def without_numbers(text):
    """Kinds of lines: how many plateaus a training has, and all figures, differ between machines."""
    return {re.sub(r"\s+", " ", re.sub(r"[\d.]+", "#", line)) for line in text.splitlines()}


def test_the_notebook_runs_and_its_outputs_are_those_of_its_code():
    run = copy.deepcopy(NOTEBOOK)
    for cell in code_cells(run):
        cell["outputs"] = []
    TOOL.run(run)
    for now, before in zip(code_cells(run), code_cells(NOTEBOOK), strict=True):
        assert without_numbers(TOOL.text_of(now)) == without_numbers(TOOL.text_of(before))
        assert len(TOOL.pictures_of(now)) == len(TOOL.pictures_of(before))
        assert all(len(picture) > 5_000 for picture in TOOL.pictures_of(now))


def test_it_draws_with_every_function_of_plotting():
    code = "".join("".join(cell["source"]) for cell in code_cells(NOTEBOOK))
    for name in lightning_psp.plotting.__all__:
        assert f"{name}(" in code, name


def test_it_is_whole_small_and_of_no_machine():
    assert [cell["execution_count"] for cell in code_cells(NOTEBOOK)] == [*range(1, len(code_cells(NOTEBOOK)) + 1)]
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    assert len(TEXT) < 500_000
    assert not re.search(r"/(home|root|tmp|usr|var|work|Users)/|[A-Z]:\\\\", TEXT)


def test_what_a_cell_prints_and_draws_stands_below_it():
    def cell(kind, *lines):
        outputs = {"outputs": []} if kind == "code" else {}
        return {"cell_type": kind, "source": [f"{line}\n" for line in lines], **outputs}

    notebook = {
        "cells": [
            cell("markdown", "# Title"),
            cell("code", "from matplotlib import pyplot", "print(3)", "figure, axes = pyplot.subplots()"),
            cell("code", "print(axes.get_title() == '')"),
        ]
    }
    TOOL.run(notebook)
    page, pictures = TOOL.to_markdown(notebook, "example")
    assert list(pictures) == ["example_1.png"]
    assert pictures["example_1.png"].startswith(b"\x89PNG")
    blocks = ["# Title", "example.ipynb", "print(3)", "```text\n3\n```", "(example_1.png)", "```text\nTrue\n```"]
    places = [page.index(block) for block in blocks]
    assert places == sorted(places)


def test_an_error_in_a_cell_is_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        TOOL.run({"cells": [{"cell_type": "code", "source": ["1 / 0\n"], "outputs": []}]})
