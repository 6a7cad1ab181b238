"""Largest eigenvalues of a Hessian."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from lightning_psp.analysis import HessianSpectrum
from lightning_psp.plotting.style import given_axes, new_axes, styles, tidy


def plot_spectrum(
    spectra: HessianSpectrum | Mapping[str, HessianSpectrum], ax: Axes | None = None
) -> tuple[Figure | SubFigure, Axes]:
    """Draws the largest eigenvalues of the Hessian of one solution or several, in descending order.

    Larger eigenvalues are sharper directions of the loss; Tartaglione et al. (2020) compare those of a gradually pruned
    and a one-shot pruned network. The Hessian is that of the loss, or of loss and penalty where they were computed with
    λ. Bars show the residuals, within which an eigenvalue of the Hessian lies.

    Args:
        spectra: a result of :func:`~lightning_psp.analysis.hessian_eigenvalues`, or several by their labels in the
            legend, the one to point out last.
        ax: axes to draw into; by default a new figure of pyplot.

    Returns:
        The figure and the axes.

    Raises:
        TypeError: if what is given are no spectra.
        ValueError: if there is no spectrum.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_psp.analysis import hessian_eigenvalues
        >>> batch = torch.randn(20, 3), torch.randint(2, (20,))
        >>> spectrum = hessian_eigenvalues(nn.Linear(3, 2).double(), [(batch[0].double(), batch[1])], k=2)
        >>> figure, axes = plot_spectrum({"linear": spectrum})
        >>> axes.get_ylabel()
        'eigenvalue of the Hessian'
    """
    by_label = dict(spectra) if isinstance(spectra, Mapping) else {"": spectra}
    if not by_label:
        raise ValueError("Expected argument `spectra` to have at least one spectrum but got none.")
    wrong = [type(each).__name__ for each in by_label.values() if not isinstance(each, HessianSpectrum)]
    if wrong:
        raise TypeError(
            "Expected argument `spectra` to be a HessianSpectrum, or to map labels of the legend to several, but got"
            f" {wrong[0]}."
        )
    axes = new_axes(1, (6.4, 4.2))[0] if ax is None else given_axes(ax, 1, "the spectra")[0]
    for (label, spectrum), style in zip(by_label.items(), styles(len(by_label), markers=True), strict=True):
        values, residuals = spectrum.values.tolist(), spectrum.residuals.tolist()
        places = range(1, len(values) + 1)
        axes.errorbar(places, values, residuals, label=label or None, capsize=3, linewidth=1.4, **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("number of the eigenvalue")
    axes.set_ylabel("eigenvalue of the Hessian")
    axes.set_title("Largest eigenvalues", fontweight="bold")
    if isinstance(spectra, Mapping):
        axes.legend(frameon=False, handlelength=3)
    tidy(axes)
    return axes.figure, axes
