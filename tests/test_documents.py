"""The README's code runs, and the tests that the documents name are there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
SUPPORTED = (ROOT / "docs" / "supported.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)


def test_there_are_blocks():
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_block_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, str(README), "exec"), {"__name__": "readme"})


def test_every_situation_names_a_test_that_exists():
    rows = re.findall(r"^\| (?!situation)([^|]*)\|([^|]*)\|([^|]*)\|$", SUPPORTED, flags=re.MULTILINE)
    assert len(rows) == SUPPORTED.count("\n| ") - SUPPORTED.count("\n| situation") > 50
    for situation, verdict, tests in rows:
        named = re.findall(r"`(tests/\w+\.py)::(\w+)`", tests)
        assert named or "untested" in tests or "see below" in verdict, situation
        for path, name in named:
            defined = ast.parse((ROOT / path).read_text()).body
            assert name in [getattr(node, "name", None) for node in defined], f"{path}::{name}"
