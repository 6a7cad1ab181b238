"""Names of tests in tables, folded away when the site is built: what a table compares is then seen at once."""

import re
from typing import Any

# A cell that holds names of tests and nothing else.
_CELL = re.compile(r"<td>((?:<code>tests/[^<]*</code>(?:, )?)+)</td>")


def on_page_content(content: str, **kwargs: Any) -> str:
    """Called by MkDocs with the HTML of each page."""
    return _CELL.sub(_fold, content)


def _fold(found: re.Match[str]) -> str:
    number = found[1].count("<code>")
    label = "1 test" if number == 1 else f"{number} tests"
    return f'<td class="tests"><details><summary>{label}</summary>{found[1]}</details></td>'
