"""Histograms are drawn as densities."""

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from lightning_psp import record_potentials
from lightning_psp.plotting import plot_distributions

EDGES = np.linspace(-1, 1, 401)


def histogram(width, beyond=60):
    counts = np.histogram(np.random.default_rng(0).normal(0, width, 5000), EDGES)[0]
    return {"limit": 1.0, "beyond": beyond, "counts": counts.tolist()}


def test_densities_hold_the_counts(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.stairs", lambda axes, values, edges, **style: drawn.append((values, edges))
    )
    wide, narrow = histogram(0.4), {"limit": 1.0, "beyond": 0, "counts": [0] * 195 + [10] * 10 + [0] * 195}
    _, (axes,) = plot_distributions({"ℓ2": {"fc": wide}, "PSP": {"fc": narrow}})
    assert axes.get_xlim() == (-1, 1)
    for (density, edges), counts in zip(drawn, (wide, narrow), strict=True):
        number = sum(counts["counts"]) + counts["beyond"]
        assert np.allclose(np.diff(edges), edges[1] - edges[0])
        assert (density * np.diff(edges)).sum() == pytest.approx(sum(counts["counts"]) / number)
        for left, right, height in zip(edges, edges[1:], density, strict=False):
            inside = (EDGES[:-1] > left - 1e-9) & (EDGES[1:] < right + 1e-9)
            assert height == pytest.approx(np.asarray(counts["counts"])[inside].sum() / number / (right - left))


def test_values_beyond_the_bins_are_told_of():
    inside, outside = ({"limit": 1.0, "beyond": number, "counts": [10] * 400} for number in (1, 40))
    layers = {"ℓ2 (weight decay 0.1)": {"a": inside, "b": outside}, "PSP (λ = 0.1)": {"a": inside, "b": inside}}
    _, axes = plot_distributions(layers, values="potential")
    assert [panel.get_xlabel() for panel in axes] == ["potential", "potential\nbeyond: ℓ2 1.0 %, PSP 0.0 %"]


@pytest.mark.parametrize("bins", [2, 3, 40, 41, 101])
def test_the_interval_shown_is_the_narrowest_that_holds_nearly_all(bins):
    edges = np.linspace(-1, 1, bins + 1)
    values = np.random.default_rng(0).normal(0, 0.1, 20000)
    counts = np.histogram(values, edges)[0].tolist()
    _, (axes,) = plot_distributions({"none": {"fc": {"limit": 1.0, "beyond": 0, "counts": counts}}})
    shown = axes.get_xlim()[1]
    assert np.abs(shown - edges).min() < 1e-9
    assert np.mean(np.abs(values) <= shown) >= 0.9995
    assert np.mean(np.abs(values) <= shown - 2 / bins) < 0.9995


@pytest.mark.parametrize(("tail", "least"), [(1, 1e-5), (10**6, 1e-3)])
def test_rare_values_do_not_stretch_the_axis_of_densities(tail, least):
    wide, peaked = [1] * 40, [tail] * 40
    peaked[20] = 10**9
    counted = {"wide": wide, "peaked": peaked}
    _, (axes,) = plot_distributions(
        {name: {"fc": {"limit": 1.0, "beyond": 0, "counts": counts}} for name, counts in counted.items()}
    )
    bottom, top = axes.get_ylim()
    largest = 10**9 / sum(peaked) * 20
    assert top > largest
    assert bottom == pytest.approx(least * largest, rel=0.4)


def test_densities_without_a_power_of_ten_between_them_have_numbers():
    figure, (axes,) = plot_distributions({"even": {"fc": {"limit": 1.0, "beyond": 0, "counts": [90, 110] * 20}}})
    figure.canvas.draw()
    low, high = axes.get_ylim()
    labels = [text.get_text() for text in axes.get_yticklabels() if low <= text.get_position()[1] <= high]
    assert len([label for label in labels if label]) >= 2


def test_three_techniques_in_given_axes():
    axes = Figure().subplots(1, 2)
    layers = {"conv1": histogram(0.2), "fc1": histogram(0.3)}
    figure, drawn = plot_distributions(dict.fromkeys(("none", "ℓ2", "PSP"), layers), axes)
    assert (figure, drawn) == (axes[0].figure, tuple(axes))
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["none", "ℓ2", "PSP"]
    assert [panel.get_title() for panel in axes] == ["conv1", "fc1"]
    with pytest.raises(ValueError, match="2 axes, one for each of conv1, fc1, but got 1"):
        plot_distributions({"none": layers}, axes[0])


def test_tensors_are_counted(monkeypatch):
    network = nn.Sequential(nn.Linear(3, 50), nn.ReLU(), nn.Linear(50, 2))
    with record_potentials(network) as potentials:
        network(torch.randn(400, 3))
    halves = {layer: z / 2 for layer, z in potentials.items()}
    drawn = {}

    def keep(axes, density, edges, label, **style):
        drawn.setdefault(label, []).append((density, edges))

    monkeypatch.setattr(Axes, "stairs", keep)
    plot_distributions({"whole": potentials, "half": halves}, values="potential")
    for label, given in (("whole", potentials), ("half", halves)):
        for (density, edges), z in zip(drawn[label], given.values(), strict=True):
            shown = z[(z >= edges[0]) & (z <= edges[-1])].double()
            assert (density * np.diff(edges)).sum() == pytest.approx(len(shown) / z.numel(), abs=1e-3)
            middles = (edges[1:] + edges[:-1]) / 2
            square = (density * np.diff(edges) * middles**2).sum()
            assert square == pytest.approx((shown**2).sum().item() / z.numel(), rel=0.02)


def test_tensors_of_equal_values_and_of_none():
    _, (axes,) = plot_distributions({"a": {"fc": torch.zeros(5)}})
    assert axes.get_xlim()[0] < 0 < axes.get_xlim()[1]
    with pytest.raises(ValueError, match="to have values of 'fc' for 'a' but got none"):
        plot_distributions({"a": {"fc": torch.zeros(0)}})
    with pytest.raises(ValueError, match="finite values but got nan among those of 'fc' for 'b'"):
        plot_distributions({"a": {"fc": torch.ones(2)}, "b": {"fc": torch.tensor([1.0, float("nan")])}})


@pytest.mark.parametrize("nothing", [{}, {"none": {}}])
def test_nothing_to_draw_is_an_error(nothing):
    with pytest.raises(ValueError, match="at least one layer"):
        plot_distributions(nothing)


def test_techniques_have_the_same_layers_and_values_in_each():
    one, two = {"fc": histogram(0.2)}, {"fc": histogram(0.2), "conv": histogram(0.2)}
    for techniques, found in (({"a": one, "b": two}, "fc, conv"), ({"b": two, "a": one}, "fc")):
        last = list(techniques)[-1]
        with pytest.raises(ValueError, match=f"to have the layers .* but got {found} for '{last}'"):
            plot_distributions(techniques)
    with pytest.raises(ValueError, match="to have values of 'fc' for 'a' but got none"):
        plot_distributions({"a": {"fc": {"limit": 1.0, "beyond": 0, "counts": [0, 0]}}})


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_bins_have_a_width(limit):
    with pytest.raises(ValueError, match=f"`limit` of 'fc' to be a finite number above 0 for 'PSP' but got {limit}"):
        plot_distributions({"PSP": {"fc": {"limit": limit, "beyond": 0, "counts": [0, 3, 0]}}})


def test_other_kinds_are_an_error():
    with pytest.raises(TypeError, match=r"`techniques` to be a dict of tensors or histograms"):
        plot_distributions([])
    with pytest.raises(TypeError, match=r"by label and layer but got list"):
        plot_distributions({"a": [1.0]})
    with pytest.raises(TypeError, match=r"dicts with `counts` \(such as `torch\.histc.* but got list"):
        plot_distributions({"a": {"fc1": [1.0]}})


@pytest.mark.parametrize("lacking", ["beyond", "counts", "limit"])
def test_a_histogram_that_lacks_something_is_named(lacking):
    given = {"limit": 1.0, "beyond": 0, "counts": [1, 2]}
    del given[lacking]
    with pytest.raises(ValueError, match=rf"dicts with `counts` .*, but `{lacking}` is missing of 'fc' for 'PSP'"):
        plot_distributions({"PSP": {"fc": given}})
