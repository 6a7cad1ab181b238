"""Draws the pictures of docs/gallery.md from results that are in docs/results: `python docs/tools/gallery.py`.

With the folders of `pruning_study.py --small` and `geometry_study.py --small` it first collects what is drawn of those:
`python docs/tools/gallery.py examples/output/pruning_study examples/output/geometry_study/digits`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure, SubFigure

from lightning_psp.analysis import GradientParts, HessianSpectrum, LossPlane
from lightning_psp.plotting import (
    plot_curves,
    plot_distributions,
    plot_gradient_parts,
    plot_plane,
    plot_pruning,
    plot_spectrum,
)

DOCS = Path(__file__).resolve().parents[1]
RESULTS = DOCS / "results"
DIGITS = RESULTS / "geometry_study" / "digits.json"
PICTURES = DOCS / "images" / "gallery"
TECHNIQUES = {"none": "no regularisation", "l2": "ℓ2", "dropout": "dropout", "psp": "PSP"}
COUNTED = ("none", "psp")  # of whose potentials there are histograms
ARMS = {
    "gradual": "LOBSTER",
    "lottery_ticket": "its masks, its initial weights",
    "one_shot": "masks of the dense network",
}


def read(path: Path) -> dict[str, Any]:
    """Reads a JSON file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def collect(pruning: Path, geometry: Path) -> dict[str, Any]:
    """What is drawn of the two studies of the digits, rounded to six digits.

    Args:
        pruning: Folder of `pruning_study.py`.
        geometry: Folder of `geometry_study.py`.
    """
    arms: dict[str, list[tuple[float, float]]] = {label: [] for label in ARMS.values()}
    for row in read(pruning / "pruning_study.json")["trainings"]:
        if row["arm"] in ARMS and not row["lam"]:
            arms[ARMS[row["arm"]]] += [(level["sparsity"], level["test_error"]) for level in row["levels"]]
    planes = {name: LossPlane.load(geometry / f"{name}_test.pt") for name in ("plane", "line")}
    spectra = {name: HessianSpectrum.load(geometry / f"spectrum_{name}.pt") for name in ("one-shot", "gradual")}
    return {
        "arms": {label: [[round(share, 6), error] for share, error in points] for label, points in arms.items()},
        **{
            name: {
                "x": plane.x.tolist(),
                "y": plane.y.tolist(),
                "values": {measure: rounded(values) for measure, values in plane.values.items()},
            }
            for name, plane in planes.items()
        },
        "spectra": {name: [rounded(each.values), rounded(each.residuals)] for name, each in spectra.items()},
    }


def rounded(values: torch.Tensor) -> Any:
    """Nested lists of numbers with six digits."""
    if values.ndim:
        return [rounded(each) for each in values]
    return float(f"{values.item():.6g}")


def curves() -> Figure | SubFigure:
    """Error and ⟨z²⟩ of LeNet-5 on MNIST, three seeds a technique."""
    keys = {"val_error": "error", "psp/z2_val": "z2"}
    runs = {
        label: [
            {key: [epoch[name] for epoch in read(path)["epochs"]] for key, name in keys.items()}
            for path in sorted((RESULTS / "lenet5").glob(f"MNIST_{technique}_seed*.json"))
        ]
        for technique, label in TECHNIQUES.items()
    }
    return plot_curves(runs, titles={"val_error": "Test error"}, units={"val_error": "wrongly classified (%)"})[0]


def distributions() -> Figure | SubFigure:
    """Potentials of the same networks."""
    files = {TECHNIQUES[each]: RESULTS / "lenet5" / f"MNIST_{each}_seed0.json" for each in COUNTED}
    return plot_distributions({label: read(file)["potentials"] for label, file in files.items()}, values="potential")[0]


def gradient_parts() -> Figure | SubFigure:
    """LeNet-5 after training without regularisation."""
    content = read(RESULTS / "gradient_split" / "lenet5_trained_mean.json")
    tensors = {name: torch.tensor(content[name], dtype=torch.float64) for name in ("norms", "shares", "total")}
    names = {name: tuple(content[name]) for name in ("parameters", "layers")}
    return plot_gradient_parts(GradientParts(**names, **tensors, reduction=content["reduction"]))[0]


def plane(name: str, measure: str, log_scale: bool) -> Figure | SubFigure:
    """A map or a line of the digits' study."""
    content = read(DIGITS)[name]
    values = {measure: torch.tensor(content["values"][measure], dtype=torch.float64)}
    result = LossPlane(torch.tensor(content["x"]), torch.tensor(content["y"]), values, {})
    return plot_plane(result, measure=measure, labels=("gradual", "one-shot"), log_scale=log_scale)[0]


def spectrum() -> Figure | SubFigure:
    """The largest eigenvalues at both solutions."""
    results = {
        name: HessianSpectrum(torch.tensor(values), torch.tensor(residuals), {}, 0)
        for name, (values, residuals) in read(DIGITS)["spectra"].items()
    }
    return plot_spectrum(results)[0]


DRAWN: dict[str, Callable[[], Figure | SubFigure]] = {
    "curves": curves,
    "distributions": distributions,
    "gradient_parts": gradient_parts,
    "pruning": lambda: plot_pruning(read(DIGITS)["arms"])[0],
    "plane_loss": lambda: plane("plane", "loss", True),
    "plane_entropy": lambda: plane("plane", "entropy", False),
    "line_entropy2": lambda: plane("line", "entropy2", False),
    "spectrum": spectrum,
}


def main() -> None:
    """Collects where there are arguments, and draws."""
    if len(sys.argv) == 3:
        DIGITS.parent.mkdir(exist_ok=True)
        lines = ",\n".join(f'"{name}": {json.dumps(each)}' for name, each in collect(*map(Path, sys.argv[1:])).items())
        DIGITS.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    PICTURES.mkdir(exist_ok=True)
    for name, draw in DRAWN.items():
        draw().savefig(PICTURES / f"{name}.png", dpi=100)


if __name__ == "__main__":
    main()
