"""The documentation builds without a warning, shows every public name, and needs no other host."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import lightning_psp.analysis
import lightning_psp.functional
import lightning_psp.metrics
import lightning_psp.pruning
import lightning_psp.schedules

for tool in ("mkdocs", "material", "mkdocstrings_handlers.python", "latex2mathml"):
    pytest.importorskip(tool, reason="needs the tools of the extra `docs`")

pytestmark = pytest.mark.first
ROOT = Path(__file__).parents[1]
# Python code that fails where the build would speak to another host.
NO_NETWORK = """
import socket

def refuse(*arguments, **settings):
    raise OSError("the documentation is built without a network")

socket.getaddrinfo = socket.create_connection = refuse
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(NO_NETWORK)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "NO_MKDOCS_2_WARNING": "1",
    }
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder / "html")]
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return {str(path.relative_to(folder / "html")): path.read_text() for path in (folder / "html").rglob("*.html")}


class Loaded(HTMLParser):
    """What a browser loads for a page by itself."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "link" and found.get("rel") not in ("canonical", "next", "prev"):
            self.addresses.append(found["href"])
        elif "src" in found:
            self.addresses.append(found["src"])


def test_every_page_is_there(site):
    pages = [str(path.relative_to(ROOT / "docs").with_suffix(".html")) for path in (ROOT / "docs").rglob("*.md")]
    assert {page.replace("README.html", "index.html") for page in pages} <= set(site)


def test_pages_look_for_other_versions(site):
    assert all('"provider": "mike"' in page for name, page in site.items() if name != "404.html")


def test_the_notebook_is_a_page_with_its_pictures(site):
    page = site["tutorial.html"]
    assert re.findall(r'src="(tutorial_\d+\.png)"', page) == [f"tutorial_{number}.png" for number in range(1, 10)]
    assert "LobsterPruning" in page
    assert 'href="tutorial.ipynb"' in page
    others = {name: re.findall(r'href="(?:\.\./)?tutorial\.(\w+)"', text) for name, text in site.items()}
    assert {"html"} == {ending for name, found in others.items() if name != "tutorial.html" for ending in found}


@pytest.mark.parametrize(
    "module",
    [lightning_psp, lightning_psp.analysis, lightning_psp.functional, lightning_psp.metrics, lightning_psp.pruning],
    ids=lambda module: module.__name__,
)
def test_every_public_name_is_in_the_reference(site, module):
    page = site[f"reference/{module.__name__.removeprefix('lightning_psp.')}.html"]
    for name in module.__all__:
        assert name.startswith("__") or f'id="{module.__name__}.{name}"' in page, name


def test_every_schedule_is_in_the_reference(site):
    for kind in (lightning_psp.schedules.Schedule, *lightning_psp.schedules.Schedule.__subclasses__()):
        if kind.__module__ == "lightning_psp.schedules":
            assert f'id="lightning_psp.schedules.{kind.__name__}"' in site["reference/schedules.html"]


def test_markup_of_docstrings_and_formulas_is_shown_as_meant(site):
    for name, page in site.items():
        assert not re.search(r":(func|class|meth|math):|\.\. math::", page), name
        assert not re.search(r'class="arithmatex">\\', page), name
    assert "<math" in site["reference/functional.html"]
    assert "<math" in site["concepts/penalty.html"]


def test_names_of_tests_are_folded_away(site):
    """All in tables, for a cell that holds anything else would be shown as it is."""
    page, source = site["supported.html"], (ROOT / "docs" / "supported.md").read_text()
    folded = re.findall(r"<details><summary>(\d+) tests?</summary>(.*?)</details>", page)
    assert len(folded) > 50
    assert all(int(number) == names.count("<code>tests/") for number, names in folded)
    assert sum(int(number) for number, _ in folded) == sum(
        line.count("`tests/") for line in source.splitlines() if line.startswith("|")
    )


def test_no_page_asks_another_host(site):
    for name, page in site.items():
        loaded = Loaded()
        loaded.feed(page)
        assert loaded.addresses
        assert not [address for address in loaded.addresses if address.startswith(("http:", "https:", "//"))], name
