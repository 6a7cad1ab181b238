"""The documents' code runs and prints what they say, and the tests that they name are there."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from tests.support.pages import FENCE, Page

ROOT = Path(__file__).parents[1]
SUPPORTED = (ROOT / "docs" / "supported.md").read_text()
# What blocks use that are left to the tests of libraries, tests/libraries/loggers/.
OF_LIBRARIES = re.compile(r"WandbLogger\(|MLFlowLogger\(")

README = Page(ROOT / "README.md")
PAGES = {str(path.relative_to(ROOT)): Page(path) for path in sorted((ROOT / "docs").rglob("*.md"))}


def test_there_are_blocks():
    assert len(README.blocks) >= 3
    assert sum(len(page.blocks) for page in PAGES.values()) > 20


@pytest.mark.parametrize("number", range(len(README.blocks)))
def test_block_of_the_readme_runs_alone(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    README.run({"__name__": "readme"}, *README.blocks[number])


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if page.blocks])
def test_blocks_of_a_page_run_one_after_another(name, tmp_path, monkeypatch):
    if "sklearn" in PAGES[name].text:
        pytest.importorskip("sklearn", reason="the page takes its data from scikit-learn")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for fence, expected in PAGES[name].blocks:
        if not OF_LIBRARIES.search(fence[2]):
            PAGES[name].run(namespace, fence, expected)


def test_table_of_the_readme_is_the_one_that_the_quickstart_wrote():
    assert (ROOT / "docs/results/quickstart/quickstart.md").read_text() in README.text


def numbers_in(text):
    return set(re.findall(r"\d+\.\d+", text))


RESULTS = {
    section.splitlines()[0]: section for section in (ROOT / "docs" / "results.md").read_text().split("\n## ")[1:]
}


@pytest.mark.parametrize("title", RESULTS)
def test_numbers_in_the_text_on_results_are_those_of_the_tables(title):
    section = FENCE.sub("", RESULTS[title])
    tables = re.findall(r"results/[\w/-]+\.md", section)
    assert tables
    in_tables = set().union(*(numbers_in((ROOT / "docs" / path).read_text()) for path in tables))
    assert numbers_in(re.sub(r"\(results/.*?\)|--8<--.*", "", section)) <= in_tables


def test_files_that_the_readme_links_to_are_there():
    linked = [target for target in re.findall(r"\]\(([^)#]+)", README.text) if "://" not in target]
    assert len(linked) > 10
    assert not [target for target in linked if not (ROOT / target).is_file()]


@pytest.mark.parametrize("name", PAGES)
def test_files_that_a_page_links_to_are_there_without_the_site(name):
    linked = re.findall(r"\]\(([^)#\s]+)", FENCE.sub("", PAGES[name].text))
    assert not [link for link in linked if "://" not in link and not (ROOT / name).parent.joinpath(link).is_file()]


def anchors_of(path):
    """The anchors that GitHub gives the headings of a page; the site's are checked when it is built."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text()), flags=re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("name", ["README.md", *PAGES])
def test_anchors_that_a_page_links_to_are_there_without_the_site(name):
    text = FENCE.sub("", PAGES.get(name, README).text)
    linked = [link.partition("#") for link in re.findall(r"\]\(([^)\s:]*#[^)\s]+)\)", text)]
    pages = [((ROOT / name).parent / target if target else ROOT / name, anchor) for target, _, anchor in linked]
    assert not [f"{page}#{anchor}" for page, anchor in pages if anchor not in anchors_of(page)]


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
KIT = ["CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "SECURITY.md", "examples/README.md", "examples/configs/README.md"]


@pytest.mark.parametrize("name", [*KIT, "README.md", "docs/architecture.md"])
def test_files_and_commands_that_are_named_are_there(name):
    text = (ROOT / name).read_text()
    links = [target for target in re.findall(r"\]\(([^)#]+)", text) if "://" not in target]
    paths = re.findall(r"`((?:lightning_psp|tests|examples|docs|\.github|\.ci)/[\w./*]*)`", text)
    assert not [target for target in links if not (ROOT / name).parent.joinpath(target).is_file()]
    assert not [path for path in paths if not list(ROOT.glob(path)) and "output" not in path]
    commands = re.findall(r"\bmake ([a-z-]+)\b(?=`| PYTEST_ARGS|$)", text, flags=re.MULTILINE)
    assert set(commands) <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def test_the_picture_of_the_architecture_is_what_its_script_draws():
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "docs" / "tools" / "architecture.py")
    architecture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(architecture)
    assert architecture.PICTURE.read_text(encoding="utf-8") == architecture.picture()
    drawn = {box.title for box in architecture.BOXES.values() if box.kind != "yours"}
    written = set(re.findall(r"`((?!lightning_psp|tests)\w+/[\w.*]*)`", ARCHITECTURE))
    assert not [name for name in drawn | written if not list((ROOT / "lightning_psp").glob(name))]


def test_each_example_has_its_line():
    scripts = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert set(re.findall(r"^\| `(\w+\.py)` \|", (ROOT / "examples/README.md").read_text(), re.MULTILINE)) == scripts


@pytest.mark.parametrize("name", ["README.md", *PAGES])
def test_every_fence_says_its_language(name):
    page = PAGES.get(name, README)
    opening = re.findall(r"^ *```(.*)$", page.text, flags=re.MULTILINE)[::2]
    assert set(opening) <= {"python", "text", "sh", "yaml"}
    assert len(opening) == len(FENCE.findall(page.text))  # none is indented, where its code would not be found


@pytest.mark.parametrize("name", ["README.md", *PAGES])
def test_formulas_are_written_as_github_and_the_site_both_read_them(name):
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", PAGES.get(name, README).text))
    assert not re.search(r"\\[(\[]", text)  # GitHub shows \( and \[ as they are
    assert not re.search(r"\$[^$]*\\[,;!{}]", text)  # and takes the backslash before these away
    for block in re.findall(r"^\$\$\n(.*?)^\$\$$", text, flags=re.DOTALL | re.MULTILINE):
        assert not re.search(r"^[-+*=]", block, flags=re.MULTILINE)  # a list or a heading


def test_every_situation_names_a_test_that_exists():
    rows = re.findall(r"^\| (?!situation)([^|]*)\|([^|]*)\|([^|]*)\|$", SUPPORTED, flags=re.MULTILINE)
    assert len(rows) == SUPPORTED.count("\n| ") - SUPPORTED.count("\n| situation") > 50
    for situation, verdict, tests in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)
        assert named or "untested" in tests or "see below" in verdict, situation
        for path, name in named:
            defined = ast.parse((ROOT / path).read_text()).body
            assert name in [getattr(node, "name", None) for node in defined], f"{path}::{name}"
