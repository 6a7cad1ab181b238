"""What the package index shows: README with links that work there, and addresses, where the repository is known."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("hatchling")

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("package_page", ROOT / ".ci" / "package_page.py")
package_page = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(package_page)

GITHUB = {
    "GITHUB_SERVER_URL": "https://github.com",
    "GITHUB_REPOSITORY": "someone/something",
    "GITHUB_REF_TYPE": "tag",
    "GITHUB_REF_NAME": "v1.2.0",
    "GITHUB_SHA": "0123456",
}
README = (ROOT / "README.md").read_text(encoding="utf-8")
TARGET = re.compile(r"\]\(([^)\s]+)\)")


def metadata(**environment):
    """The metadata of a package that is built in this environment."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")}
    command = [sys.executable, "-m", "hatchling", "metadata"]
    printed = subprocess.run(
        command, cwd=ROOT, env={**known, **environment}, capture_output=True, text=True, check=True
    )
    return json.loads(printed.stdout)


def test_the_index_has_links_to_files_of_the_tag():
    found = metadata(**GITHUB)
    address = "https://github.com/someone/something"
    before, (state, *after) = (TARGET.findall(text) for text in (README, found["readme"]["text"]))
    assert state == f"{address}/actions/workflows/tests.yml/badge.svg?branch=main"
    assert (ROOT / ".github" / "workflows" / "tests.yml").exists()
    files = [target for target in before if not target.startswith(("http", "#"))]
    assert len(files) > 20
    assert all((ROOT / target.partition("#")[0]).exists() for target in files)
    for target, link in zip(before, after, strict=True):
        kind = "raw" if target.endswith(".png") else "blob"
        assert link == (f"{address}/{kind}/v1.2.0/{target}" if target in files else target)
    assert found["urls"]["Source"] == address
    paths = [url.removeprefix(f"{address}/blob/v1.2.0/") for url in found["urls"].values()]
    assert [path for path in paths if (ROOT / path).is_file()] == ["docs/index.md", "CHANGELOG.md"]


def test_elsewhere_readme_stays_as_it_is():
    found = metadata()
    assert found["readme"] == {"content-type": "text/markdown", "text": README}
    assert "urls" not in found


def test_the_badges_say_what_the_package_asks_for():
    found = metadata()
    badges = re.findall(r"^!\[([^\]]*)\]\(https://img\.shields\.io/badge/(.*)-\w+\)$", README, flags=re.MULTILINE)
    classified = [each.removeprefix("Programming Language :: Python :: ") for each in found["classifiers"]]
    pythons = [version for version in classified if re.fullmatch(r"3\.\d+", version)]
    oldest = dict(each.split(">=") for each in found["dependencies"])
    expected = [
        ["Python", f"{pythons[0]} to {pythons[-1]}"],
        ["PyTorch", f"{oldest['torch']} or newer"],
        ["Lightning", f"{oldest['lightning']} or newer"],
        ["licence", found["license"]],
    ]
    assert [shown.replace("_", " ").split("-") for _, shown in badges] == expected
    assert [said.replace(": ", " ") for said, _ in badges] == [" ".join(pair) for pair in expected]
    assert found["requires-python"] == f">={pythons[0]}"


def test_without_a_tag_the_commit_is_named():
    repository, ref = package_page.origin({**GITHUB, "GITHUB_REF_TYPE": "branch", "GITHUB_REF_NAME": "main"})
    text = "[a](b.md#c) ![d](e.png) [f](#g) [h](https://i.org/j) [k](mailto:l@m.org)"
    at = "https://github.com/someone/something"
    expected = (
        f"[a]({at}/blob/0123456/b.md#c) ![d]({at}/raw/0123456/e.png) [f](#g) [h](https://i.org/j) [k](mailto:l@m.org)"
    )
    assert package_page.absolute(text, repository, ref) == expected
