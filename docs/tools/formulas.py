"""Formulas as MathML, made when the site is built: pages need no script and no other host to show them."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

# What pymdownx.arithmatex leaves of a formula, in a line and on a line of its own.
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', flags=re.DOTALL)


def on_page_content(content: str, **kwargs: Any) -> str:
    """Called by MkDocs with the HTML of each page."""
    return _FORMULA.sub(_to_mathml, content)


def _to_mathml(found: re.Match[str]) -> str:
    tag, formula = found[1], html.unescape(found[2])
    display = "block" if tag == "div" else "inline"
    return f'<{tag} class="arithmatex">{convert(formula, display=display)}</{tag}>'
