"""A release: what `make release` writes, builds and tags, and the wheel in an environment without the project."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import lightning_psp
from tests.support.environments import make_environment

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("release", ROOT / ".ci" / "release.py")
release = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(release)
VERSION = "97.0.0rc1"
PROGRAM = f"""
import lightning_psp, torch
from importlib.metadata import requires, version
from packaging.requirements import Requirement
from lightning_psp import PSPCallback, psp_penalty, record_potentials
assert lightning_psp.__version__ == "{VERSION}"
needed = [r for r in map(Requirement, requires("lightning_psp")) if not r.marker]
assert {{r.name for r in needed}} == {{"lightning", "torch", "torchmetrics"}}
assert all(r.specifier.contains(version(r.name), prereleases=True) for r in needed)
network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
with record_potentials(network) as potentials:
    network(torch.ones(4, 3))
psp_penalty(potentials).backward()
print(lightning_psp.__file__, *potentials, PSPCallback().lam)
"""


def announcing(version):
    """The changelog as it is while the version is worked on."""
    text = re.sub(r"^## \[(.*)\] - .*$", r"## [\1] - 2000-01-01", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    return text.replace("\n## [", f"\n## [{version}] - Unreleased\n\n### Fixed\n\n- A fault.\n\n## [", 1)


def test_the_version_is_the_same_everywhere():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == lightning_psp.__version__


def test_each_file_has_one_place_for_the_version():
    texts = {name: (ROOT / name).read_text() for name in release.changes("", "")} | {"CHANGELOG.md": announcing("2.1")}
    assert str(release.announced(texts["CHANGELOG.md"])) == "2.1"
    for name, edit in release.changes("2.1", "2031-01-02").items():
        lines = set(edit(texts[name]).splitlines()) - set(texts[name].splitlines())
        assert lines in (
            {"## [2.1] - 2031-01-02"},
            {'__version__ = "2.1"'},
            {"version: 2.1", "date-released: 2031-01-02"},
        )


def test_a_changelog_that_announces_nothing_is_refused():
    with pytest.raises(SystemExit, match="found 0"):
        release.announced("## [1.0.0] - 2031-01-02\n")


def listed(folder):
    return subprocess.run(["git", "ls-files"], cwd=folder, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )[:-1]


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A copy of the project, with a release made in it, and a way to run commands there."""
    for tool in ("build", "twine", "hatchling"):
        pytest.importorskip(tool)
    folder = tmp_path_factory.mktemp("project")
    for name in listed(ROOT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "CHANGELOG.md").write_text(announcing(VERSION))
    person = {f"GIT_{role}_{key}": "a@b.c" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}

    def run(*command, check=True):
        settings = {**os.environ, **person, "GIT_CONFIG_GLOBAL": os.devnull}
        return subprocess.run(command, cwd=folder, env=settings, check=check, capture_output=True, text=True)

    run("git", "init", "--quiet")
    run("git", "add", "--all")
    run("git", "commit", "--quiet", "--message", "all")
    # What the Makefile would set up: this environment.
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (folder / ".venv" / "bin" / "python").chmod(0o755)
    for stamp in (".created", ".has-dev"):
        (folder / ".venv" / stamp).touch()
    made = run("make", "release", check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    return folder, run


@pytest.mark.environments
def test_a_release_is_one_commit_with_a_tag(released):
    folder, run = released
    assert run("git", "describe").stdout.strip() == f"v{VERSION}"
    changed = run("git", "diff", "--name-only", "HEAD~1").stdout.split()
    assert changed == ["CHANGELOG.md", "CITATION.cff", "lightning_psp/__init__.py"]
    assert not run("git", "status", "--porcelain").stdout
    assert {path.name for path in (folder / "dist").iterdir()} == {
        f"lightning_psp-{VERSION}.tar.gz",
        f"lightning_psp-{VERSION}-py3-none-any.whl",
    }
    again = run("make", "release", check=False)
    assert again.returncode
    assert "Unreleased" in again.stderr


@pytest.mark.environments
def test_a_release_that_cannot_be_built_changes_nothing(released):
    folder, run = released
    run("git", "checkout", "--quiet", "HEAD~1")
    (folder / "README.md").unlink()
    run("git", "commit", "--quiet", "--all", "--message", "no text for the index")
    run("git", "tag", "--delete", f"v{VERSION}")
    kept = folder.parent / "dist"
    shutil.copytree(folder / "dist", kept, dirs_exist_ok=True)
    made = run("make", "release", check=False)
    shutil.copytree(kept, folder / "dist", dirs_exist_ok=True)
    assert made.returncode
    assert not run("git", "status", "--porcelain").stdout
    assert not run("git", "tag", "--list").stdout


@pytest.mark.environments
def test_what_is_in_the_files(released):
    folder, _ = released
    with tarfile.open(folder / "dist" / f"lightning_psp-{VERSION}.tar.gz") as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert inside - {"PKG-INFO"} == set(listed(ROOT))
    with zipfile.ZipFile(folder / "dist" / f"lightning_psp-{VERSION}-py3-none-any.whl") as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert inside == {name for name in listed(ROOT) if name.startswith("lightning_psp/")}


@pytest.mark.environments
def test_the_wheel_in_an_environment_without_the_project(released, tmp_path):
    folder, run = released
    python = make_environment(tmp_path / "environment")
    program = [python, "-P" if sys.version_info >= (3, 11) else "-I", "-c", PROGRAM]
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    before = subprocess.run(program, cwd=tmp_path, env=settings, capture_output=True, text=True)
    assert "No module named 'lightning_psp'" in before.stderr
    wheel = str(folder / "dist" / f"lightning_psp-{VERSION}-py3-none-any.whl")
    run(sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index", "--no-deps", "--quiet", wheel)
    after = subprocess.run(program, cwd=tmp_path, env=settings, capture_output=True, text=True)
    assert after.returncode == 0, after.stderr
    place, *layers, lam = after.stdout.split()
    assert Path(place).is_relative_to(tmp_path / "environment")
    assert (layers, lam) == (["0", "2"], "0.001")
