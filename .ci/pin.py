"""Writes to the standard output the versions that the Makefile installs, see `make pin`.

The tools of development get one version each: the newest that the oldest Python of the project can run. Everything else
gets that of the running environment as an upper bound, so that an older Python, or an index that serves less, still
finds one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path

import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parents[1]
HEADER = (
    "# What the Makefile installs, whatever is released later. Written by `make pin`, which tells how to update it."
)
# The build backend asks for it where the package is installed to be edited.
FOR_EDITABLE_INSTALLS = "editables"


def tools(pyproject: dict) -> list[str]:
    """The requirements of building, checking, testing and documenting the package."""
    extras = pyproject["project"]["optional-dependencies"]
    of_extras = [requirement for extra in ("docs", "dev", "release") for requirement in extras[extra]]
    found = [*pyproject["build-system"]["requires"], *of_extras, FOR_EDITABLE_INSTALLS]
    name = pyproject["project"]["name"]
    return [line for line in found if Requirement(line).name != name and Requirement(line).marker is None]


def newest(requirements: list[str], python: str) -> dict[str, str]:
    """The newest versions that a version of Python can run, by name."""
    command = [sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--ignore-installed"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command += ["--python-version", python, "--only-binary", ":all:", "--target", folder, "--report", str(report)]
        subprocess.run([*command, *requirements], check=True)
        items = [item["metadata"] for item in json.loads(report.read_text(encoding="utf-8"))["install"]]
    versions = {canonicalize_name(item["name"]): item["version"] for item in items}
    return {name: versions[name] for name in (canonicalize_name(Requirement(r).name) for r in requirements)}


def main() -> None:
    """Writes the file."""
    pyproject = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    python = pyproject["project"]["requires-python"].removeprefix(">=")
    exact = newest(tools(pyproject), python)
    installed = {canonicalize_name(found.name): found.version.partition("+")[0] for found in distributions()}
    left_out = {canonicalize_name(pyproject["project"]["name"]), "pip"}
    lines = {name: f"{name}<={version}" for name, version in installed.items() if name not in left_out}
    lines |= {name: f"{name}=={version}" for name, version in exact.items()}
    print(HEADER, *(lines[name] for name in sorted(lines)), sep="\n")


if __name__ == "__main__":
    main()
