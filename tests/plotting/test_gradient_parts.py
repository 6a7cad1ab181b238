"""What the pictures show, and the error where matplotlib is missing."""

import importlib
import math
import sys
from itertools import pairwise

import pytest
import torch

pytest.importorskip("matplotlib")

from matplotlib import pyplot
from matplotlib.figure import Figure

from lightning_psp import plotting
from lightning_psp.analysis import GradientParts
from lightning_psp.plotting import plot_gradient_parts


@pytest.fixture(autouse=True)
def close_figures():
    yield
    pyplot.close("all")


def parts(layers=3):
    """Two weights and a bias of made-up numbers; the last weight does not move the first layer."""
    shares = torch.zeros(3, layers).double()
    shares[0, :3] = torch.tensor([0.254, -0.5, 1.246])
    shares[1, :3] = torch.tensor([0.0, 0.0, 1.0])
    shares[2, 1:3] = torch.tensor([0.996, 0.004])
    norms = shares.abs()
    norms[1, 1] = 0.3  # at a right angle to the whole
    names = ("a.weight", "a.bias", "b.weight")
    return GradientParts(names, tuple(f"layer{i}" for i in range(layers)), norms, shares, norms.sum(1), "mean")


def numbers(axes):
    return {text.get_position()[::-1]: text.get_text() for text in axes.texts}


def test_weights_by_layers():
    figure, axes = plot_gradient_parts(parts())
    assert figure is axes.figure
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a.weight", "b.weight"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["layer0", "layer1", "layer2"]
    assert numbers(axes) == {(0, 0): "25", (0, 1): "−50", (0, 2): "125", (1, 1): "100", (1, 2): "0.4"}
    values = axes.images[0].get_array()
    assert values.mask.tolist() == [[False] * 3, [True, False, False]]
    assert values[0].tolist() == pytest.approx([25.4, -50, 124.6])
    assert axes.images[0].get_clim() == (-100, 100)
    assert len(figure.axes) == 2  # with that of the colour bar
    figure.canvas.draw()


def test_numbers_are_light_on_dark_cells():
    _, axes = plot_gradient_parts(parts())
    image = axes.images[0]
    for text in axes.texts:
        column, row = text.get_position()
        *colour, _ = image.cmap(image.norm(image.get_array()[row, column]))
        assert text.get_color() == ("white" if sum(colour) / 3 < 0.55 else "black")


def test_a_colour_bar_ends_in_points_where_shares_lie_beyond_it():
    within = parts()
    within.shares.clamp_(-1, 1)
    for shown, extend in ((parts(), "both"), (within, "neither")):
        assert plot_gradient_parts(shown)[1].images[0].colorbar.extend == extend


def test_a_part_at_a_right_angle_is_zero_and_not_empty():
    _, axes = plot_gradient_parts(parts(), parameters=("*.bias",))
    assert numbers(axes) == {(0, 1): "0.0", (0, 2): "100"}


def test_a_small_negative_part_is_no_negative_zero():
    small = parts()
    small.shares[0, 0] = -0.0004
    assert "0.0" in {text.get_text() for text in plot_gradient_parts(small)[1].texts}
    assert not [text for text in plot_gradient_parts(small)[1].texts if text.get_text() == "−0.0"]


def test_an_undefined_row_is_empty():
    undefined = parts()
    undefined.shares[2], undefined.norms[2] = math.nan, 0.0
    _, axes = plot_gradient_parts(undefined)
    assert {row for row, _ in numbers(axes)} == {0}


def test_given_axes_are_used():
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert plot_gradient_parts(parts(), right, colorbar=False) == (figure, right)
    assert not left.images
    assert len(figure.axes) == 2
    assert not pyplot.get_fignums()


@pytest.mark.parametrize("layers", [1, 2, 6])
def test_names_and_the_scale_can_be_read(layers):
    names = tuple(f"backbone.layer{number}.conv1" for number in range(layers))
    shares = torch.full((1, layers), 1 / layers).double()
    figure, axes = plot_gradient_parts(GradientParts(("w.weight",), names, shares, shares, shares.sum(1), "mean"))
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    bar = figure.axes[1]
    scale, title = bar.yaxis.label.get_window_extent(), axes.title.get_window_extent()
    assert bar.bbox.y0 <= scale.y0 < scale.y1 <= bar.bbox.y1
    assert axes.bbox.x0 <= title.x0 < title.x1 <= axes.bbox.x1


def test_many_layers_have_no_numbers_and_fit_on_a_page():
    figure, axes = plot_gradient_parts(parts(100))
    assert not axes.texts
    assert max(figure.get_size_inches()) <= 16


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"\('c\.\*',\).*a\.weight, a\.bias, b\.weight"):
        plot_gradient_parts(parts(), parameters=("c.*",))
    with pytest.raises(TypeError, match=r"sequence of glob patterns, .* but got 'a\.\*'"):
        plot_gradient_parts(parts(), parameters="a.*")  # of whose letters one matches everything


def test_missing_matplotlib_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, plotting.__name__)
    with pytest.raises(ModuleNotFoundError, match=r"lightning_psp\[plot\]"):
        importlib.import_module(plotting.__name__)


def test_other_kinds_are_an_error():
    with pytest.raises(TypeError, match=r"`parts` to be a result of `psp_gradient_parts` but got NoneType"):
        plot_gradient_parts(None)


@pytest.mark.parametrize("number", [8, 120])
def test_of_very_many_names_those_are_given_that_have_a_line(number):
    layers = tuple(f"layer{each}" for each in range(number))
    parameters, shares = tuple(f"{layer}.weight" for layer in layers), torch.eye(number).double()
    figure, axes = plot_gradient_parts(GradientParts(parameters, layers, shares, shares, shares.sum(1), "mean"))
    figure.canvas.draw()
    rows, columns = axes.get_yticklabels(), axes.get_xticklabels()
    boxes = [label.get_window_extent() for label in rows]
    assert all(above.y0 >= below.y1 for above, below in pairwise(boxes))
    boxes = [label.get_window_extent() for label in columns]
    assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))
    assert [label.get_text() for label in rows] == [parameters[int(place)] for place in axes.get_yticks()]
    assert [label.get_text() for label in columns] == [layers[int(place)] for place in axes.get_xticks()]
    assert (len(rows) == number) == (number == 8)
