"""Eigenvalues with their residuals."""

import pytest
import torch
from matplotlib.figure import Figure

from lightning_psp.analysis import HessianSpectrum
from lightning_psp.plotting import plot_spectrum


def spectrum(*values):
    values = torch.tensor(values).double()
    vectors = {"weight": torch.zeros(len(values), 2).double()}
    return HessianSpectrum(values, 0.1 * values.abs(), vectors, products=9)


def drawn(axes):
    found = {}
    for bars in axes.containers:
        line, _, (spread,) = bars
        heights = [(segment[1][1] - segment[0][1]) / 2 for segment in spread.get_segments()]
        found[bars.get_label()] = (line.get_xydata().tolist(), heights)
    return found


def test_eigenvalues_of_two_solutions():
    figure, axes = plot_spectrum({"one-shot": spectrum(2.0, 1.0), "gradual": spectrum(5.0, 3.0, -1.0)})
    points, residuals = drawn(axes)["gradual"]
    assert points == [[1, 5], [2, 3], [3, -1]]
    assert residuals == pytest.approx([0.5, 0.3, 0.1])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one-shot", "gradual"]
    assert axes.containers[1][0].get_color() == "#D55E00"
    figure.canvas.draw()


def test_one_spectrum_in_given_axes():
    left, right = Figure().subplots(1, 2)
    assert plot_spectrum(spectrum(2.0, 1.0), right) == (right.figure, right)
    assert right.get_legend() is None
    assert not left.containers


def test_a_single_eigenvalue_has_a_whole_number():
    figure, axes = plot_spectrum(spectrum(2.0))
    figure.canvas.draw()
    left, right = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if left <= tick <= right] == [1]


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="at least one spectrum"):
        plot_spectrum({})
    with pytest.raises(TypeError, match=r"HessianSpectrum, .* but got list"):
        plot_spectrum([])
