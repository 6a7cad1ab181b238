"""Draws docs/images/architecture.svg: `python docs/tools/architecture.py`."""

from __future__ import annotations

from html import escape
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

PICTURE = Path(__file__).resolve().parents[1] / "images" / "architecture.svg"
WIDTH, BOX_WIDTH, BOX_HEIGHT = 1080, 192, 92
COLUMNS = (20, 236, 452, 668, 884)  # left edges of boxes; the last column is narrower
# Fill and edge of a box, by what it belongs to.
COLOURS = {
    "yours": ("#FFFFFF", "#5F6368"),
    "capture": ("#DCEBF7", "#0072B2"),
    "compilation": ("#ECECEC", "#5F6368"),
    "gradient": ("#FBE3D3", "#D55E00"),
    "callback": ("#DDF1E9", "#009E73"),
    "functional": ("#F3E3EE", "#AA4499"),
}


class Box(NamedTuple):
    """A box: left and upper edge, what it belongs to, title and lines of text."""

    x: int
    y: int
    kind: str
    title: str
    lines: tuple[str, ...]
    width: int = BOX_WIDTH


FORWARD, BACKWARD, LOG = 60, 344, 532
BANDS = (
    (FORWARD, COLUMNS[0], "Forward pass: a call becomes a potential"),
    (BACKWARD, COLUMNS[1], "Backward pass: a potential becomes a part of the gradient"),
    (LOG, COLUMNS[1], "Log: a step becomes values"),
)
BOXES = {
    "network": Box(COLUMNS[0], FORWARD, "yours", "your network", ("z = self.conv1(x)", "F.relu(z)")),
    "mode": Box(
        COLUMNS[1],
        FORWARD,
        "capture",
        "capture/mode.py",
        ("hears each call of a torch", "function, and hands it to", "the file of its kind"),
    ),
    "calls": Box(
        COLUMNS[2],
        FORWARD,
        "capture",
        "capture/*_calls.py",
        ("is it a nonlinearity? which z", "enters it? origins.py knows", "the weights it came from"),
    ),
    "ledger": Box(
        COLUMNS[3],
        FORWARD,
        "capture",
        "capture/ledger.py",
        ("a Potential: a pass of a", "named layer; selection.py", "says whether it counts"),
    ),
    "recording": Box(
        COLUMNS[4],
        FORWARD,
        "functional",
        "recording/",
        ("without a trainer: a dict,", "of which penalty.py in", "functional/ makes R"),
        176,
    ),
    "compilation": Box(
        COLUMNS[1],
        FORWARD + 128,
        "compilation",
        "compilation/",
        ("in torch.compile: the graph", "is rewritten, and each run", "tells of the same calls"),
    ),
    "loss": Box(COLUMNS[0], BACKWARD, "yours", "your loss", ("loss.backward()",)),
    "settlement": Box(
        COLUMNS[1],
        BACKWARD,
        "capture",
        "capture/settlement.py",
        ("from the loss backwards:", "which layer is the output;", "witness.py: what is unseen"),
    ),
    "injection": Box(
        COLUMNS[2],
        BACKWARD,
        "gradient",
        "gradient/injection.py",
        ("which potentials lead to", "this loss, and the factor c", "in ∂(λR)/∂z = c · z"),
    ),
    "tap": Box(
        COLUMNS[3],
        BACKWARD,
        "gradient",
        "gradient/tap.py",
        ("keeps z; where the loss's", "gradient passes z, adds", "c · z to it, and sums z²"),
    ),
    "optimiser": Box(
        COLUMNS[4], BACKWARD, "yours", "your optimiser", ("∂(loss + λR)/∂w", "in each parameter.grad"), 176
    ),
    "watch": Box(
        COLUMNS[3],
        LOG,
        "callback",
        "callback/watch.py",
        ("a Step: sums of z² by layer,", "λR, the loss, and what was", "left out"),
    ),
    "step": Box(
        COLUMNS[2],
        LOG,
        "callback",
        "callback/step_log.py",
        ("psp/lam, psp/penalty,", "psp/penalty_share, psp/z2"),
    ),
    "epochs": Box(
        COLUMNS[1],
        LOG,
        "callback",
        "callback/epochs.py",
        ("for each layer ⟨z²⟩ and", "PSP-entropy, as metrics of", "metrics/"),
    ),
    "logger": Box(COLUMNS[0], LOG, "yours", "your logger", ("psp/z2_val,", "psp_z2_val/conv1,", "psp/entropy_val, …")),
}


def text(x: float, y: float, words: str, size: int = 12, style: str = "") -> str:
    """A line of text."""
    return f'<text x="{x}" y="{y}" font-size="{size}" {style}>{escape(words)}</text>'


def drawn(box: Box) -> str:
    """A box with its text."""
    fill, edge = COLOURS[box.kind]
    dashes = ' stroke-dasharray="5 3"' if box.kind == "yours" else ""
    parts = [
        f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="{BOX_HEIGHT}" rx="6" fill="{fill}" stroke="{edge}"'
        f' stroke-width="1.5"{dashes}/>',
        text(box.x + 10, box.y + 22, box.title, 14, 'font-weight="bold"'),
    ]
    parts += [text(box.x + 10, box.y + 43 + 18 * i, line) for i, line in enumerate(box.lines)]
    return "".join(parts)


def arrow(*points: tuple[float, float]) -> str:
    """An arrow along points."""
    path = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="#333333" stroke-width="1.6" marker-end="url(#head)"/>'


def across(start: str, end: str) -> str:
    """An arrow from one box to the next in its row, in either direction."""
    a, b = BOXES[start], BOXES[end]
    y = a.y + BOX_HEIGHT / 2
    return arrow((a.x + a.width, y), (b.x - 2, y)) if a.x < b.x else arrow((a.x, y), (b.x + b.width + 2, y))


def down(start: str, end: str, shift: float = 0.0) -> str:
    """An arrow from a box to one below it."""
    a, b = BOXES[start], BOXES[end]
    x = b.x + b.width / 2 + shift
    return arrow((x, a.y + BOX_HEIGHT), (x, b.y - 2))


def picture() -> str:
    """The whole picture."""
    height = LOG + BOX_HEIGHT + 40
    rows = [("network", "mode", "calls", "ledger", "recording")]
    rows += [("loss", "settlement", "injection", "tap", "optimiser"), ("watch", "step"), ("epochs", "logger")]
    arrows = [across(start, end) for row in rows for start, end in pairwise(row)]
    arrows += [down("network", "loss"), down("ledger", "tap"), down("tap", "watch")]
    below, above = LOG + BOX_HEIGHT, LOG - 14
    arrows += [
        arrow((COLUMNS[1] + 96, FORWARD + 128), (COLUMNS[1] + 96, FORWARD + BOX_HEIGHT + 2)),
        arrow(*((COLUMNS[i] + 96, y) for i, y in ((3, below), (3, below + 18), (1, below + 18), (1, below + 2)))),
        arrow(*((COLUMNS[i] + 96, y) for i, y in ((2, LOG), (2, above), (0, above), (0, LOG - 2)))),
    ]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="DejaVu Sans, sans-serif"'
        ' fill="#1A1A1A" role="img" aria-label="The way of a potential from the forward pass to the gradient and to the'
        ' log">',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#333333"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#FFFFFF"/>',
        *(text(x, y - 28, title, 15, 'fill="#444444"') for y, x, title in BANDS),
        *arrows,
        *(drawn(box) for box in BOXES.values()),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
