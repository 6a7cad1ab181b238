"""Docstrings of the package as Markdown: they are written with the roles and the maths of reStructuredText."""

import re
from typing import Any

import griffe

# A reference to an object, whose last part is shown where it begins with a tilde.
_REFERENCE = re.compile(r":(?:class|func|meth|attr|mod|data):`(~?)([\w.]+)`")
_INLINE_MATHS = re.compile(r":math:`([^`]+)`")
# The directive's first line, then lines that are indented further than it, with empty ones between them.
_DISPLAYED_MATHS = re.compile(r"^( *)\.\. math::(.*(?:\n(?:\1 +.*|[ ]*(?=\n\1 )))*)", flags=re.MULTILINE)
_EXAMPLE = re.compile(r"^( *)Example:$", flags=re.MULTILINE)


def to_markdown(text: str) -> str:
    """Rewrites roles and maths for Markdown, and the section of an example under the name that is parsed."""
    text = _REFERENCE.sub(_link, text)
    text = _DISPLAYED_MATHS.sub(lambda found: f"{found[1]}\\[{' '.join(found[2].split())}\\]", text)
    text = _INLINE_MATHS.sub(r"\\(\1\\)", text)
    return _EXAMPLE.sub(r"\1Examples:", text)


def _link(found: re.Match[str]) -> str:
    path = found[2]
    shown = path.rpartition(".")[2] if found[1] else path
    return f"[`{shown}`][{path}]"


class Roles(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every object that was found."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
