"""What the package index shows beside the code: README with links that work there, and the project's addresses.

A link of README, such as `docs/limits.md`, leads nowhere on the index. Where the package is built on GitHub, whose
variables say which repository and commit that is, links become those of the commit's files, and a picture tells whether
its tests pass. Elsewhere README stays as it is, and no address is given.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")


class PackagePage(MetadataHookInterface):
    """Fills in `readme` and `urls`, which pyproject.toml declares as dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Write both into the project's metadata."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository, ref = origin(os.environ)
        text = with_state_of_tests(absolute(text, repository, ref), repository)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = addresses(repository, ref)


def origin(environment: Mapping[str, str]) -> tuple[str, str]:
    """Address of the repository and name of the commit, of GitHub's variables; both empty elsewhere."""
    if "GITHUB_REPOSITORY" not in environment:
        return "", ""
    is_tag = environment["GITHUB_REF_TYPE"] == "tag"
    repository = f"{environment['GITHUB_SERVER_URL']}/{environment['GITHUB_REPOSITORY']}"
    return repository, environment["GITHUB_REF_NAME" if is_tag else "GITHUB_SHA"]


def absolute(text: str, repository: str, ref: str) -> str:
    """Make links to files absolute; those to other sites and to headings stay."""

    def replace(link: re.Match[str]) -> str:
        if not repository or re.match(r"[a-z]+:|#", link["target"]):
            return link[0]
        kind = "raw" if link["image"] else "blob"
        return f"{link['image']}[{link['text']}]({repository}/{kind}/{ref}/{link['target']})"

    return LINK.sub(replace, text)


def with_state_of_tests(text: str, repository: str) -> str:
    """Put a picture of whether the tests pass before the first one."""
    badge = f"![tests]({repository}/actions/workflows/tests.yml/badge.svg?branch=main)\n"
    return text.replace("![", f"{badge}![", 1) if repository else text


def addresses(repository: str, ref: str) -> dict[str, str]:
    """Addresses that the index lists."""
    if not repository:
        return {}
    return {
        "Source": repository,
        "Documentation": f"{repository}/blob/{ref}/docs/index.md",
        "Changelog": f"{repository}/blob/{ref}/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }
