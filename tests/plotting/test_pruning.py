"""Error against sparsity."""

import re
from itertools import pairwise

import pytest
from matplotlib.figure import Figure

from lightning_psp.plotting import plot_pruning

ARMS = {"gradual": [(0.9, 1.0), (0.0, 0.8), (0.98, 1.5)], "one-shot": [(0.9, 1.0), (0.9, 3.0), (0.98, 4.0)]}


def points(axes):
    drawn = {}
    for bars in axes.containers:
        line, _, (spread,) = bars
        drawn[bars.get_label()] = [
            (round(1 - left, 6), mean, round((segment[1][1] - segment[0][1]) / 2, 6))
            for left, mean, segment in zip(*line.get_data(), spread.get_segments(), strict=True)
        ]
    return drawn


def test_means_and_deviations_by_sparsity():
    _, axes = plot_pruning({"one-shot": ARMS["one-shot"]})
    (deviation,) = {2**0.5}
    assert points(axes) == {"one-shot": [(0.9, 2.0, round(deviation, 6)), (0.98, 4.0, 0.0)]}


def test_equal_steps_are_equal_factors_of_what_is_left():
    figure, axes = plot_pruning(ARMS)
    figure.canvas.draw()
    labels = {text.get_text() for text in axes.get_xticklabels()}
    assert {"0", "50", "90", "98"} <= labels
    low, high = axes.get_xlim()
    assert low > high  # more is pruned to the right
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert axes.get_ylabel() == "test error (%), log scale"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["gradual", "one-shot"]


@pytest.mark.parametrize("shares", [(0.9909, 0.9912, 0.9915), (0.6, 0.63), (0.985,), (0.9,), (0.0,)])
def test_sparsities_between_the_usual_marks_have_numbers(shares):
    figure, axes = plot_pruning({"a": [(share, 1.0) for share in shares]})
    figure.canvas.draw()
    high, low = axes.get_xlim()
    shown = [label for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]
    assert len(shown) >= min(2, len(shares))
    assert [float(label.get_text()) / 100 for label in shown] == pytest.approx(
        [1 - label.get_position()[0] for label in shown]
    )


def test_less_than_a_decade_has_labels_all_along():
    figure, axes = plot_pruning({"LOBSTER": [(0.0, 0.8), (0.5, 0.9), (0.87, 1.0)]})
    figure.canvas.draw()
    low, high = sorted(axes.get_xlim())
    shown = [label.get_text() for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]
    assert shown == ["0", "30", "50", "70", "80", "85"]


def test_the_first_arm_stands_out():
    _, axes = plot_pruning(ARMS)
    colours = {bars.get_label(): bars[0].get_color() for bars in axes.containers}
    assert colours["gradual"] == "#D55E00"
    assert colours["one-shot"] != "#D55E00"


def test_an_error_of_zero_has_a_linear_axis():
    _, axes = plot_pruning({"a": [(0.5, 0.0), (0.9, 1.0)]})
    assert axes.get_yscale() == "linear"
    assert axes.get_ylabel() == "test error (%)"


def test_given_axes_are_used():
    left, right = Figure().subplots(1, 2)
    assert plot_pruning(ARMS, right) == (right.figure, right)
    assert not left.containers


def test_bad_input():
    with pytest.raises(ValueError, match="`arms`"):
        plot_pruning({})
    with pytest.raises(ValueError, match=r"less than 1 but got 98\.0"):
        plot_pruning({"a": [(98.0, 1.0)]})
    with pytest.raises(ValueError, match="to have a finite error but got none"):
        plot_pruning({"a": [(0.5, float("nan"))]})
    with pytest.raises(ValueError, match="at least one sparsity and error but got none for 'b'"):
        plot_pruning({"a": [(0.5, 1.0)], "b": []})


def test_other_kinds_are_an_error():
    with pytest.raises(
        TypeError, match=r"`arms` to be a dict of pairs .* such as \{'LOBSTER': \[\(0\.9, 1\.2\)\]\}, but got list"
    ):
        plot_pruning([])
    for point in (0.5, (0.1,), "ab"):
        with pytest.raises(TypeError, match=rf"pairs of sparsity and error, .* but got {re.escape(repr(point))}\."):
            plot_pruning({"a": [point]})
    for point in ((0.5, [4.0, 5.0]), ("0.5", 4.0), (0.5, None)):
        with pytest.raises(
            TypeError, match=rf"to have numbers as .* several pairs, but got {re.escape(repr(point))}\."
        ):
            plot_pruning({"a": [point]})
    with pytest.raises(TypeError, match="`arms` to be a dict of sequences of pairs but got float"):
        plot_pruning({"a": 0.5})


@pytest.mark.parametrize("most", [0.9, 0.99, 0.999, 0.9999, 1 - 1e-7])
def test_labels_of_many_decades_do_not_touch(most):
    figure, axes = plot_pruning({"LOBSTER": [(0.0, 0.8), (most, 1.0)]})
    figure.canvas.draw()
    low, high = sorted(axes.get_xlim())
    labels = [label for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]
    boxes = [label.get_window_extent() for label in labels]
    assert all(left.x1 < right.x0 for left, right in pairwise(sorted(boxes, key=lambda box: box.x0)))
    assert {"0", "90"} <= {label.get_text() for label in labels}
