"""The tests of both Lightnings in environments where only one of the two is installed."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.environments import make_environment

ROOT = Path(__file__).parents[2]
# What each Lightning brings along; `lightning_fabric` comes with the second.
LIGHTNINGS = {"lightning.pytorch": ("lightning",), "pytorch_lightning": ("pytorch_lightning", "lightning_fabric")}

pytestmark = pytest.mark.environments


@pytest.mark.parametrize("name", LIGHTNINGS)
def test_with_one_alone(name, tmp_path):
    pytest.importorskip(name)
    (other,) = LIGHTNINGS.keys() - {name}
    python = make_environment(tmp_path / "environment", LIGHTNINGS[other])
    installed = f"from importlib.util import find_spec; print(*[bool(find_spec(n)) for n in {LIGHTNINGS[other]}])"
    settings = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run([python, "-c", installed], env=settings, capture_output=True, text=True, check=True)
    assert set(found.stdout.split()) == {"False"}
    result = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/callback/test_both_lightnings.py"],
        cwd=ROOT,
        env=settings,
        capture_output=True,
        text=True,
        timeout=540,
    )
    summary = result.stdout.splitlines()[-1]
    assert result.returncode == 0, result.stdout
    assert "passed" in summary
    assert "skipped" in summary  # those of the other Lightning
