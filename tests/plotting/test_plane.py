"""Maps and curves of a plane's values."""

import numpy as np
import pytest
import torch
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_psp.analysis import LossPlane
from lightning_psp.plotting import plot_plane

X, Y = torch.linspace(-0.25, 1.25, 7).double(), torch.linspace(-0.75, 0.75, 5).double()


def plane(y=Y):
    loss = 1 + X.square() + 2 * y.unsqueeze(1).square()
    layer = {"fc1": 3 * loss}
    return LossPlane(X, y, {"loss": loss, "z2": 2 * loss, "error": loss - 1}, {"z2": layer})


@pytest.fixture
def levels(monkeypatch):
    """The heights that lines are drawn at; matplotlib 3.7 does not tell of them afterwards."""
    drawn, contour = [], Axes.contour

    def recorded(self, *places, levels, **style):
        drawn.extend(levels)
        return contour(self, *places, levels=levels, **style)

    monkeypatch.setattr(Axes, "contour", recorded)
    return drawn


def test_a_map_has_each_value_at_its_point(levels):
    figure, axes = plot_plane(plane(), labels=("G", "1-S"))
    mesh = axes.collections[0]
    assert mesh.get_array().reshape(len(Y), len(X)).tolist() == plane().values["loss"].tolist()
    corners = mesh.get_coordinates()
    assert corners[0, 0].tolist() == pytest.approx([-0.375, -0.9375])  # half a step outside the first point
    assert corners[-1, -1].tolist() == pytest.approx([1.375, 0.9375])
    assert levels
    assert all(1 < level < plane().values["loss"].max() for level in levels)
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[0, 0]], [[1, 0]]]
    assert [text.get_text() for text in axes.texts] == ["G", "1-S"]
    assert axes.get_xlabel() == "from G (0) to 1-S (1)"
    assert figure.axes[1].get_ylabel() == "loss"
    figure.canvas.draw()


def test_a_line_is_a_curve():
    _, axes = plot_plane(plane(torch.zeros(1).double()), measure="z2", log_scale=True)
    curve = axes.lines[0]
    assert curve.get_ydata().tolist() == (2 + 2 * X.square()).tolist()
    assert [line.get_xdata()[0] for line in axes.lines[1:]] == [0, 1]
    assert axes.get_ylabel() == "⟨z²⟩ (log scale)"
    assert axes.get_yscale() == "log"


def test_a_point_of_a_line_beside_none_that_is_finite_is_drawn():
    broken = plane(torch.zeros(1).double())
    broken.values["loss"][0, [1, 3]] = torch.tensor([torch.nan, torch.inf]).double()
    curve = plot_plane(broken)[1].lines[0]
    assert (curve.get_marker(), curve.get_markevery()) == ("o", [0, 2])
    assert plot_plane(plane(torch.zeros(1).double()))[1].lines[0].get_marker() == "None"


def test_names_of_solutions_on_a_line_stand_above_the_curve():
    figure, axes = plot_plane(plane(torch.zeros(1).double()), labels=("G", "1-S"))
    figure.canvas.draw()
    assert [text.get_text() for text in axes.texts] == ["G", "1-S"]
    for text in axes.texts:
        assert axes.bbox.y1 <= text.get_window_extent().y0
        assert text.get_window_extent().y1 <= axes.title.get_window_extent().y0


@pytest.mark.parametrize(
    ("least", "labels"), [(1e-3, {"0.01", "0.1", "1"}), (0.5, {"0.5", "1", "2"}), (3.0, {"3.5", "4"})]
)
@pytest.mark.parametrize("is_line", [False, True])
def test_logarithmic_heights_are_labelled_with_numbers(least, labels, is_line):
    x = torch.linspace(0, 1, 5).double()
    y = torch.zeros(1).double() if is_line else x
    loss = (least + (x + x.unsqueeze(1)) * 0.75)[-len(y) :]
    figure, axes = plot_plane(LossPlane(x, y, {"loss": loss}, {}), log_scale=True)
    figure.canvas.draw()
    axis = axes.yaxis if is_line else figure.axes[1].yaxis
    assert axis.get_label_text() == "loss (log scale)"
    shown = {label.get_text() for label in axis.get_ticklabels()}
    assert not any("mathdefault" in label for label in shown)
    assert is_line or labels <= shown


def test_a_layer_of_its_own():
    _, axes = plot_plane(plane(), measure="z2", layer="fc1")
    assert axes.collections[0].get_array().max() == 3 * plane().values["loss"].max()
    assert axes.get_title() == "Mean squared potential, fc1"


def test_given_axes_are_used():
    left, right = Figure().subplots(1, 2)
    figure, axes = plot_plane(plane(), right, colorbar=False)
    assert (figure, axes) == (right.figure, right)
    assert len(figure.axes) == 2
    assert not left.collections


@pytest.mark.parametrize("log_scale", [False, True])
def test_heights_and_colours_go_in_equal_steps_or_by_equal_factors(levels, log_scale):
    mesh = plot_plane(plane(), log_scale=log_scale)[1].collections[0]
    heights = np.log(levels) if log_scale else np.array(levels)
    assert len(heights) == 9
    assert np.diff(heights) == pytest.approx(np.diff(heights)[0])
    middle = (mesh.norm.vmin * mesh.norm.vmax) ** 0.5 if log_scale else (mesh.norm.vmin + mesh.norm.vmax) / 2
    assert mesh.norm(middle) == pytest.approx(0.5)


def test_a_flat_plane_has_no_lines_of_equal_height():
    flat = LossPlane(X, Y, {"loss": torch.ones(len(Y), len(X)).double()}, {})
    figure, axes = plot_plane(flat)
    assert len(axes.collections) == 1
    figure.canvas.draw()


@pytest.mark.parametrize("log_scale", [False, True])
def test_heights_are_between_the_finite_values(levels, log_scale):
    whole, broken = plane(), plane()
    broken.values["loss"][0, 0], broken.values["loss"][-1, -1] = torch.inf, torch.nan
    mesh = plot_plane(broken, log_scale=log_scale)[1].collections[0]
    finite = broken.values["loss"][broken.values["loss"].isfinite()]
    assert (mesh.norm.vmin, mesh.norm.vmax) == (finite.min(), finite.max())
    assert finite.min() < min(levels) < max(levels) < finite.max()
    assert mesh.get_array().mask.sum() == 2
    whole.values["loss"].fill_(torch.nan)
    with pytest.raises(ValueError, match="to have a finite value of 'loss' but got none"):
        plot_plane(whole, log_scale=log_scale)


def test_bad_input():
    with pytest.raises(TypeError, match=r"of names, such as \('first', 'second'\), but got 'ab'"):
        plot_plane(plane(), labels="ab")
    for labels in (("a",), ("a", "b", "c")):
        with pytest.raises(ValueError, match=r"`labels` to be the names of two solutions but got \('a',"):
            plot_plane(plane(), labels=labels)
    with pytest.raises(ValueError, match="one of loss, z2, error but got 'entropy'"):
        plot_plane(plane(), measure="entropy")
    with pytest.raises(ValueError, match=r"'z2' \(fc1\) but got 'fc2'"):
        plot_plane(plane(), measure="z2", layer="fc2")
    with pytest.raises(ValueError, match="by_layer=True"):
        plot_plane(plane(), layer="fc1")
    with pytest.raises(ValueError, match="the lowest is 0"):
        plot_plane(plane(), measure="error", log_scale=True)
    with pytest.raises(TypeError, match="`ax` to be axes of matplotlib but got 'error'"):
        plot_plane(plane(), "error")


def test_other_kinds_are_an_error():
    with pytest.raises(TypeError, match=r"`plane` to be a result of `loss_plane` but got list"):
        plot_plane([])


def test_names_of_solutions_are_dark_on_their_light_boxes():
    with style.context("dark_background"):
        _, axes = plot_plane(plane())
    assert [(text.get_color(), text.get_bbox_patch().get_facecolor()[:3]) for text in axes.texts] == [
        ("black", (1.0, 1.0, 1.0))
    ] * 2
