"""What the Makefile installs agrees with what pyproject.toml promises."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = Path(__file__).resolve().parents[1]


def requirements(lines):
    found = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): r for r in found if r.name != "lightning_psp" and r.marker is None}


def constraints(name):
    lines = (PROJECT / name).read_text(encoding="utf-8").splitlines()
    return requirements(line for line in lines if line and not line.startswith("#"))


def pyproject():
    return tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))


def tools(*names):
    extras = pyproject()["project"]["optional-dependencies"]
    asked = [line for name in names or ("docs", "dev", "release") for line in extras[name]]
    return requirements([*asked, *pyproject()["build-system"]["requires"]])


def dependencies():
    project = pyproject()["project"]
    extras = project["optional-dependencies"]
    return requirements(
        [*project["dependencies"], *(line for name in ("analysis", "plot", "cli", "examples") for line in extras[name])]
    )


def operators(requirement):
    return [specifier.operator for specifier in requirement.specifier]


def version_in(requirement, operator):
    (found,) = (specifier.version for specifier in requirement.specifier if specifier.operator == operator)
    return found


def needed(name, pinned):
    """What a package asks for, if it is installed in the version of the file."""
    try:
        return (requires(name) or []) if version(name) == version_in(pinned, operators(pinned)[0]) else []
    except PackageNotFoundError:
        return []


def needs(name, pinned):
    """The names of what a package always needs, if it is installed in the version of the file."""
    found = [Requirement(line) for line in needed(name, pinned)]
    return {canonicalize_name(requirement.name) for requirement in found if requirement.marker is None}


def test_each_tool_has_one_version():
    pinned = constraints("requirements-dev.txt")
    assert {"mypy", "pytest", "ruff", "hatchling"} <= set(tools())
    for name, asked in tools().items():
        assert operators(pinned[name]) == ["=="], name
        assert asked.specifier.contains(version_in(pinned[name], "==")), name


def test_everything_else_has_an_upper_bound():
    pinned = constraints("requirements-dev.txt")
    assert {"torch", "lightning", "torchmetrics", "torchvision"} <= set(dependencies())
    for name, asked in dependencies().items():
        assert operators(pinned[name]) == ["<="], name
        assert asked.specifier.contains(version_in(pinned[name], "<=")), name
    assert {operator for requirement in pinned.values() for operator in operators(requirement)} == {"==", "<="}


def test_what_they_ask_for_is_bounded_too():
    pinned = constraints("requirements-dev.txt")
    asked = {name: needs(name, pinned[name]) for name in {**tools(), **dependencies()}}
    if not asked["pytest"]:
        pytest.skip("pytest is not installed in the version of the file")
    for name, names in asked.items():
        assert names <= set(pinned), name


def test_the_lowest_versions_are_those_that_are_promised():
    lowest = constraints("requirements-oldest.txt")
    for name, asked in dependencies().items():
        assert Version(version_in(lowest[name], "==")) == Version(version_in(asked, ">=")), name
    pinned = constraints("requirements-dev.txt")
    for name, requirement in lowest.items():
        if operators(requirement) == ["=="]:
            assert pinned[name].specifier.contains(version_in(requirement, "==")), name


def test_the_tools_run_beside_the_lowest_versions():
    pinned, lowest = constraints("requirements-dev.txt"), constraints("requirements-oldest.txt")
    asked = [Requirement(line) for name in tools("docs", "dev") for line in needed(name, pinned[name])]
    if not asked:
        pytest.skip("no tool is installed in the version of the file")
    for requirement in asked:
        bound = lowest.get(canonicalize_name(requirement.name))
        for specifier in requirement.specifier if bound and requirement.marker is None else ():
            assert specifier.operator != ">=" or bound.specifier.contains(specifier.version), requirement


def test_users_get_ranges():
    for asked in requirements(pyproject()["project"]["dependencies"]).values():
        assert operators(asked) == [">="]


@pytest.mark.parametrize("command", ["demo", "test", "docs", "test-oldest"])
def test_commands_install_with_the_constraints(command):
    """And nothing in an environment for the build, where constraints do not hold."""
    made = subprocess.run(
        ["make", "--dry-run", "--always-make", command], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    installs = [line for line in made.stdout.splitlines() if "pip install" in line]
    assert len(installs) == 2
    for line in installs:
        assert "--constraint requirements-dev.txt" in line
        assert ("--constraint requirements-oldest.txt" in line) == (command == "test-oldest" and ".[dev]" in line)
    assert "hatchling editables" in installs[0]
    assert "--no-build-isolation" in installs[1]
