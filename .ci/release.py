"""Makes the release that CHANGELOG.md announces, see `make release` and CONTRIBUTING.md.

The version is that of the changelog's heading `## [1.2.0] - Unreleased`. It is written where versions are kept, the
package is built and checked, and the commit gets a tag. Pushing the tag publishes; nothing here does.
"""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from packaging.version import Version

PROJECT = Path(__file__).resolve().parents[1]
HEADING = re.compile(r"^## \[([^\]]+)\] - Unreleased$", re.MULTILINE)


def announced(changelog: str) -> Version:
    """The version that the changelog announces."""
    found = HEADING.findall(changelog)
    if len(found) != 1:
        sys.exit(f"Expected one heading like `## [1.2.0] - Unreleased` in CHANGELOG.md but found {len(found)}.")
    return Version(found[0])


def replaced(pattern: str, replacement: str) -> Callable[[str], str]:
    """A function that replaces the one place of a text that the pattern matches."""

    def replace(text: str) -> str:
        text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        if count != 1:
            sys.exit(f"Expected one place that matches {pattern!r} but found {count}.")
        return text

    return replace


def changes(version: Version, date: str) -> dict[str, Callable[[str], str]]:
    """What a release changes, by file."""
    return {
        "CHANGELOG.md": replaced(HEADING.pattern, f"## [{version}] - {date}"),
        "lightning_psp/__init__.py": replaced(r'^__version__ = ".*"$', f'__version__ = "{version}"'),
        "CITATION.cff": replaced(r"^version: .*$(\ndate-released: .*$)?", f"version: {version}\ndate-released: {date}"),
    }


def run(*command: str) -> str:
    """Run a command in the project's folder and return what it prints."""
    return subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    """Write the version, build, commit and tag."""
    if run("git", "status", "--porcelain"):
        sys.exit("Expected a tree without changes: commit or stash them first.")
    version = announced((PROJECT / "CHANGELOG.md").read_text(encoding="utf-8"))
    tag = f"v{version}"
    if run("git", "tag", "--list", tag):
        sys.exit(f"The tag {tag} is there already: announce the next version in CHANGELOG.md.")
    edits = changes(version, datetime.date.today().isoformat())
    before = {name: (PROJECT / name).read_text(encoding="utf-8") for name in edits}
    after = {name: edit(before[name]) for name, edit in edits.items()}
    try:
        for name, text in after.items():
            (PROJECT / name).write_text(text, encoding="utf-8")
        run("make", "package")
    except BaseException:
        for name, text in before.items():
            (PROJECT / name).write_text(text, encoding="utf-8")
        raise
    run("git", "commit", "--quiet", "--message", f"Version {version}", "--", *edits)
    run("git", "tag", "--annotate", tag, "--message", f"Version {version}")
    print(f"Version {version} is in dist/ and tagged. This publishes it:\n\n    git push origin HEAD {tag}\n")


if __name__ == "__main__":
    main()
