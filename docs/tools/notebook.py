"""Notebooks without Jupyter: runs their cells and keeps the outputs, and makes pages of them when the site is built.

`python docs/tools/notebook.py docs/tutorial.ipynb` runs it anew, and puts what it prints and draws into the file.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any

DOTS_AN_INCH = 80  # of a figure 6 inches wide: 480 pixels
_NOTEBOOK = re.compile(r"\]\(([\w./-]+)\.ipynb")


def run(notebook: dict[str, Any]) -> None:
    """Runs the code cells one after another, and puts what they print and draw in place of their outputs."""
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("agg")
    pyplot.close("all")  # what others have left open is none of the notebook's
    namespace = {"__name__": "notebook"}
    for number, cell in enumerate(_code_cells(notebook), start=1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("".join(cell["source"]), f"<cell {number}>", "exec"), namespace)
        cell["execution_count"] = number
        cell["outputs"] = [*_as_stream(printed.getvalue()), *_drawn()]


def text_of(cell: dict[str, Any]) -> str:
    """What a cell has printed."""
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def pictures_of(cell: dict[str, Any]) -> list[bytes]:
    """What a cell has drawn, as PNG."""
    data = [output["data"] for output in cell["outputs"] if output["output_type"] == "display_data"]
    return [base64.b64decode("".join(each["image/png"])) for each in data]


def to_markdown(notebook: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """The page, and its pictures by their file names.

    Args:
        notebook: what its file holds.
        name: the file's name without the ending.
    """
    parts, pictures = [], {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        if text_of(cell):
            parts.append(f"```text\n{text_of(cell)}```")
        for picture in pictures_of(cell):
            file = f"{name}_{len(pictures) + 1}.png"
            pictures[file] = picture
            parts.append(f"![Figure {len(pictures)}, drawn by the code above]({file})")
    parts.insert(1, f"[Download this page as a notebook]({name}.ipynb)")
    return "\n\n".join(parts) + "\n", pictures


def on_files(files: Any, config: Any) -> Any:
    """Called by MkDocs with all files: adds a page for each notebook."""
    from mkdocs.structure.files import File

    for file in [each for each in files if each.src_uri.endswith(".ipynb")]:
        name = file.src_uri.removesuffix(".ipynb")
        page, pictures = to_markdown(json.loads(Path(file.abs_src_path).read_text(encoding="utf-8")), Path(name).name)
        files.append(File.generated(config, f"{name}.md", content=page))
        for picture, content in pictures.items():
            files.append(File.generated(config, str(Path(name).with_name(picture)), content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Called by MkDocs with each page: a link to a notebook, which leads to it in the repository, leads to its page."""
    own = PurePosixPath(page.file.src_uri).with_suffix(".ipynb").name  # a notebook's page links to it for download
    return _NOTEBOOK.sub(lambda link: link[0] if link[0] == f"]({own}" else f"]({link[1]}.md", markdown)


def _code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def _as_stream(text: str) -> list[dict[str, Any]]:
    lines = text.splitlines(keepends=True)
    return [{"output_type": "stream", "name": "stdout", "text": lines}] if lines else []


def _drawn() -> list[dict[str, Any]]:
    from matplotlib import pyplot

    outputs = []
    for number in pyplot.get_fignums():
        file = io.BytesIO()
        pyplot.figure(number).savefig(file, dpi=DOTS_AN_INCH)
        data = {"image/png": base64.b64encode(file.getvalue()).decode() + "\n"}
        outputs.append({"output_type": "display_data", "metadata": {}, "data": data})
    pyplot.close("all")
    return outputs


if __name__ == "__main__":
    path = Path(sys.argv[1])
    content = json.loads(path.read_text(encoding="utf-8"))
    run(content)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
