"""The package's folders import in one direction, without a circle, and its files are short."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lightning_psp"

# What stands in the package's root: folders, and modules that users import. Each imports from those below it alone.
ORDER = (
    "__init__",
    "callback",
    "plotting",
    "analysis",
    "pruning",
    "lightnings",
    "schedules",
    "metrics",
    "recording",
    "compilation",
    "gradient",
    "capture",
    "functional",
    "torch_private",
)
LONGEST = 400
MOST_IN_TESTS = 25
MOST_IN_ROOT = 8


def modules(package):
    """Dotted name to file of every module."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(package):
    """For each module those of the package that it imports, for type checkers and inside functions too."""
    known = modules(package)
    found = {name: set() for name in known}
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names if alias.name in known}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{name} imports by a relative path"
                if node.module in known:
                    parts = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
                    found[name] |= {parts[part] if parts[part] in known else node.module for part in parts}
    return {name: targets - {name} for name, targets in found.items()}


def top(module):
    """The folder or module of the root to which a module belongs."""
    return [*module.split("."), "__init__"][1]


def wrong_ways(package):
    """Imports from the same level's own folders are left out: circles among those are found by themselves."""
    return [
        f"{name} imports {target}"
        for name, targets in imports(package).items()
        for target in sorted(targets)
        if top(name) != top(target) and ORDER.index(top(name)) >= ORDER.index(top(target))
    ]


def circles(package):
    """Modules from which the way of imports leads back to themselves, in groups."""
    edges = imports(package)
    reached = {name: set(targets) for name, targets in edges.items()}
    for middle in reached:
        for targets in reached.values():
            if middle in targets:
                targets |= reached[middle]
    return {tuple(sorted(n for n in reached[name] if name in reached[n])) for name in reached if name in reached[name]}


def test_folders_import_from_those_below():
    assert not wrong_ways(PACKAGE)


def test_there_is_no_circle():
    assert not circles(PACKAGE)


def test_files_are_short():
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules(PACKAGE).items()}
    assert not {name: length for name, length in lengths.items() if length > LONGEST}


def test_files_beside_the_package_are_short_and_no_folder_is_crowded():
    files = [path for folder in ("tests", "examples", "docs") for path in (PACKAGE.parent / folder).rglob("*.py")]
    assert not [path for path in files if len(path.read_text().splitlines()) > LONGEST]
    assert max(Counter(path.parent for path in files).values()) <= MOST_IN_TESTS


def test_no_test_imports_another():
    tests = PACKAGE.parent.joinpath("tests").rglob("test_*.py")
    assert not [path for path in tests if re.search(r"^from tests\.(\w+\.)?test_", path.read_text(), re.MULTILINE)]


def test_the_root_is_small_and_every_entry_has_its_place():
    entries = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert entries == set(ORDER)
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_IN_ROOT


# Of tensors and modules of torch: what is read of the package's own objects has other names.
OF_TORCH = {
    *"_version _is_view _base _backward_hooks _use_count _cdata _parameters _modules _buffers _forward_hooks".split(),
    *"_compiled_call_impl _forward_cls _dynamo_source compiler_fn".split(),
}


def private_names(tree):
    """What a module asks of torch by names that are not public."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            *owners, name = ast.unparse(node).split(".")
            is_of_torch = owners[0] == "torch" and any(part.startswith("_") for part in (*owners, name))
            if is_of_torch or (node.attr in OF_TORCH and owners != ["self"]):
                yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            parts = [*node.module.split("."), *(alias.name for alias in node.names)]
            yield from (part for part in parts if part.startswith("_"))


def test_private_names_of_torch_are_in_one_folder():
    found = {name: [*private_names(ast.parse(path.read_text()))] for name, path in modules(PACKAGE).items()}
    outside = {name: names for name, names in found.items() if names and top(name) != "torch_private"}
    assert not outside
    assert any(found.values())


def test_folders_say_what_they_are_for():
    """What flows in, what flows out, and which file to open first."""
    for folder in ORDER:
        path = PACKAGE / folder / "__init__.py"
        if path.is_file():
            text = ast.get_docstring(ast.parse(path.read_text()))
            assert len(text.split("\n\n")) > 1, folder
            assert "`" in text, f"{folder} names no file"


WRONG = {
    "upwards": ({"capture/a.py": "from lightning_psp.gradient.b import x", "gradient/b.py": ""}, True, False),
    "typing": (
        {
            "capture/a.py": "if TYPE_CHECKING:\n    from lightning_psp.gradient import b",
            "gradient/b.py": "def f():\n    import lightning_psp.capture.a",
        },
        True,
        True,
    ),
    "inside a folder": (
        {
            "capture/a.py": "from lightning_psp.capture import b",
            "capture/b.py": "from lightning_psp.capture.a import x",
        },
        False,
        True,
    ),
    "downwards": ({"gradient/b.py": "from lightning_psp.capture.a import x", "capture/a.py": ""}, False, False),
}


PRIVATE = [
    "torch._foreach_abs(x)",
    "torch._C._nn.gelu(x)",
    "from torch._dynamo import eval_frame",
    "from torch.utils._pytree import tree_map",
    "from torch.utils.checkpoint import _checkpoint",
    "module.weight._version",
]


@pytest.mark.parametrize("code", PRIVATE)
def test_private_names_are_found(code):
    assert [*private_names(ast.parse(code))]
    assert not [*private_names(ast.parse("torch.relu(self._version); from torch.nn import functional; a._own"))]


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_found(tmp_path, case):
    files, is_wrong, is_circle = WRONG[case]
    package = tmp_path / "lightning_psp"
    for name, text in {"__init__.py": "", "capture/__init__.py": "", "gradient/__init__.py": "", **files}.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    assert bool(wrong_ways(package)) == is_wrong
    assert bool(circles(package)) == is_circle


def test_the_page_on_the_architecture_has_each_folder_in_this_order():
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    told = re.findall(r"^\| `lightning_psp/(\w+)/` \|", page, flags=re.MULTILINE)
    assert told == [name for name in ORDER if (PACKAGE / name).is_dir()]
