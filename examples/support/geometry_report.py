"""Table and pictures of the geometry study."""

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib import pyplot

from lightning_psp.analysis import HessianSpectrum, LossPlane
from lightning_psp.plotting import plot_plane, plot_spectrum
from support.tables import markdown_table

SETS = {"train": "training images", "test": "test images"}


def report(
    title: str,
    planes: Mapping[str, LossPlane],
    spectra: Mapping[str, HessianSpectrum],
    summary: Mapping[str, Mapping[str, Any]],
    folder: Path,
    of_hessian: str,
) -> None:
    """Write ``geometry_study.md`` and the pictures.

    Args:
        title: Network and data.
        planes: Planes and lines of both sets.
        spectra: The largest eigenvalues at each solution.
        summary: Measures of each solution on the test images.
        folder: Where the files go.
        of_hessian: The images of the Hessian, in words.
    """
    first, second = summary
    labels = (first, second)
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.6), dpi=150, layout="constrained")
    for ax, (part, words) in zip(axes, SETS.items(), strict=True):
        plot_plane(planes[f"plane_{part}"], ax, measure="loss", labels=labels, log_scale=True)
        ax.set_title(f"Loss, {words}", fontweight="bold")
    figure.savefig(folder / "loss.png")

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.6), dpi=150, layout="constrained")
    for ax, measure in zip(axes, ("z2", "entropy"), strict=True):
        plot_plane(planes["plane_test"], ax, measure=measure, labels=labels, log_scale=measure == "z2")
    figure.savefig(folder / "potentials.png")

    measures = ("loss", "error", "z2", "entropy", "entropy2")
    figure, panels = pyplot.subplots(2, 3, figsize=(12, 7.2), dpi=150, layout="constrained")
    *axes, unused = panels.flat
    unused.remove()
    for ax, measure in zip(axes, measures, strict=True):
        plot_plane(planes["line_test"], ax, measure=measure, labels=labels)
    figure.savefig(folder / "line.png")

    figure, ax = plot_spectrum(spectra)
    ax.set_title(title, fontweight="bold")
    figure.savefig(folder / "spectrum.png")

    text = f"# {title}\n\n{table(summary, of_hessian)}"
    (folder / "geometry_study.md").write_text(text)
    print(text)


def table(summary: Mapping[str, Mapping[str, Any]], of_hessian: str) -> str:
    """One column a solution."""
    layers = list(next(iter(summary.values()))["entropy"])
    lines: list[tuple[str, Any]] = [
        ("pruned (%)", lambda row: f"{100 * row['sparsity']:.2f}"),
        ("test error (%)", lambda row: f"{row['test_error']:.2f}"),
        ("test loss", lambda row: f"{row['test_loss']:.4f}"),
        ("⟨z²⟩, mean over layers", lambda row: f"{mean(row['z2'].values()):.3g}"),
        (f"largest eigenvalue of the Hessian, {of_hessian}", lambda row: f"{row['eigenvalues'][0]:.3g}"),
        (f"its trace, {of_hessian}", lambda row: f"{row['trace'][0]:.3g} ± {row['trace'][1]:.2g}"),
    ]
    for order, name in (("entropy", "PSP-entropy"), ("entropy2", "second-order PSP-entropy")):
        lines.append((f"{name}, mean over layers (bits)", lambda row, order=order: f"{mean(row[order].values()):.3f}"))
        for layer in layers:
            lines.append((f"{name}, {layer}", lambda row, order=order, layer=layer: f"{row[order][layer]:.3f}"))
    rows = [[words, *(cell(row) for row in summary.values())] for words, cell in lines]
    return markdown_table(["on the test images", *summary], rows)
