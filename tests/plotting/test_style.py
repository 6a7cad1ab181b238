"""What all pictures share: numbers at their axes, points that no line shows, captions within the figure."""

import math
from itertools import pairwise

import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgb

from lightning_psp.plotting import plot_curves, plot_distributions
from lightning_psp.plotting.style import label_plainly, lone


@pytest.mark.parametrize(
    "values", [(1e-30, 1e10), (1e-8, 1e8), (1e-5, 1.0), (1e-2, 1.0), (0.3, 0.4), (1.0, 1.0), (0.03, 0.03)]
)
def test_a_logarithmic_axis_has_numbers_at_any_height(values):
    figure, axes = pyplot.subplots(figsize=(5, 4))
    axes.plot([1, 2], values)
    axes.set_yscale("log")
    label_plainly(axes.yaxis)
    figure.canvas.draw()
    low, high = axes.get_ylim()
    boxes = [
        label.get_window_extent()
        for label in axes.get_yticklabels()
        if label.get_text() and low <= label.get_position()[1] <= high
    ]
    assert len(boxes) >= 3
    assert all(below.y1 < above.y0 for below, above in pairwise(boxes))
    assert min(each.get_position()[1] for each in axes.get_yticklabels()) <= 2 * values[0]


def test_lone_values():
    assert lone([1.0, math.nan, 2.0, 3.0, math.inf, 4.0]) == [0, 5]
    assert lone([1.0]) == [0]
    assert lone([1.0, 2.0]) == lone([math.nan]) == []


@pytest.mark.parametrize(("number", "rows"), [(1, 1), (6, 1), (7, 2), (60, 10)])
def test_many_panels_stand_in_rows(number, rows):
    histogram = {"limit": 1.0, "counts": [1, 4, 3, 1], "beyond": 0}
    figure, panels = plot_distributions({"PSP": {f"layer{place}": histogram for place in range(number)}})
    assert [panel.get_title() for panel in panels] == [f"layer{place}" for place in range(number)]
    assert panels == tuple(figure.axes)
    assert sum(panel.get_ylabel() == "density (log scale)" for panel in panels) == rows
    assert figure.get_figwidth() <= 20
    assert figure.get_figheight() == pytest.approx(3.6 * rows)
    pyplot.close(figure)


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_captions_are_within_the_figure(number):
    histogram = {"limit": 1.0, "counts": [1, 4, 3, 1], "beyond": 0}
    training = {str(key): [2.0, 1.0] for key in range(number)}
    figures = (
        plot_distributions({"PSP": {str(layer): histogram for layer in range(number)}})[0],
        plot_curves({"PSP": [training, training]}, keys=list(training))[0],
    )
    for figure in figures:
        figure.canvas.draw()
        (caption,) = figure.texts
        box = caption.get_window_extent()
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1


@pytest.mark.parametrize("letters", [4, 24, 40])
def test_a_legend_above_is_within_the_figure(letters):
    histogram = {"limit": 1.0, "counts": [1, 4, 3, 1], "beyond": 0}
    labels = [f"{'technique ' * 9}"[: letters - 1] + str(number) for number in range(9)]
    figures = (
        plot_curves({label: {"val_error": [2.0, 1.0], "psp/z2_val": [2.0, 1.0]} for label in labels})[0],
        plot_distributions({label: {"fc1": histogram, "fc2": histogram} for label in labels})[0],
    )
    for figure in figures:
        figure.canvas.draw()
        box, whole = figure.legends[0].get_window_extent(), figure.bbox
        assert whole.x0 <= box.x0
        assert box.x1 <= whole.x1


def test_titles_are_no_wider_than_panels():
    histogram = {"limit": 1.0, "counts": [1, 4, 3, 1], "beyond": 0}
    names = ["conv1", "backbone.encoder.layers.11.attention.output.dense", "model.decoder.layers.0.fc1"]
    figure, panels = plot_distributions({"PSP": dict.fromkeys(names, histogram)})
    figure.canvas.draw()
    assert [panel.get_title().replace("\n", "") for panel in panels] == names
    boxes = [panel.title.get_window_extent() for panel in panels]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    assert boxes[-1].x1 <= figure.bbox.x1
    assert "\n" not in panels[0].get_title()


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_captions_and_grids_suit_any_background(style):
    with pyplot.style.context(style):
        figure, (axes, _) = plot_curves({"PSP": [{"val_error": [2.0, 1.0], "psp/z2_val": [2.0, 1.0]}] * 2})
        paper = sum(to_rgb(figure.get_facecolor())) / 3
        line = axes.get_xgridlines()[0]
        assert abs(sum(to_rgb(figure._supxlabel.get_color())) / 3 - paper) > 0.4
        assert line.get_alpha() * abs(sum(to_rgb(line.get_color())) / 3 - paper) < 0.15
