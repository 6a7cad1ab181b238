"""The tests of both Lightnings in environments where only one of the two is installed.

An environment is a virtual environment of its own; what it shares with this one is linked, so that nothing is installed
and PyTorch is not copied.
"""

import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = Path(sysconfig.get_path("purelib"))
# What each Lightning brings along; `lightning_fabric` comes with the second.
LIGHTNINGS = {"lightning.pytorch": ("lightning",), "pytorch_lightning": ("pytorch_lightning", "lightning_fabric")}

pytestmark = pytest.mark.environments


def make_environment(folder, without):
    """A virtual environment that has what this one has, but for the packages `without` and this project."""
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    hidden = ("_editable_impl", "lightning_psp", "__pycache__")
    for path in PACKAGES.iterdir():
        is_hidden = path.name.startswith(hidden) or path.name.partition("-")[0] in without
        if not is_hidden and not (packages / path.name).exists():
            (packages / path.name).symlink_to(path)
    return folder / "bin" / "python"


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
