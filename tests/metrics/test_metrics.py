"""The metrics: what they keep over many batches, and what torchmetrics asks of a metric."""

import math
import pickle
import warnings
from functools import partial

import pytest
import torch
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities.exceptions import TorchMetricsUserError

from lightning_psp.functional import estimate_psp_entropy, mean_square_potential, psp_entropy
from lightning_psp.metrics import MeanSquarePotential, PSPEntropy
from tests.support.entropy_cases import CASES, batch
from tests.support.entropy_reference import classwise, mean_over_sets, observations


def parts(z, target, sizes):
    return zip(z.split(sizes), target.split(sizes), strict=True)


def filled(metric, shape=(30, 7), sizes=11):
    z, target = batch(shape)
    for part in parts(z, target, sizes):
        metric.update(*part)
    return metric


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("sizes", [1, 5, 100])
def test_first_order_over_batches(name, sizes):
    shape, unit, unit_dim = CASES[name]
    expected = torch.from_numpy(classwise(*observations(*batch(shape), unit, unit_dim), 3))
    metric = filled(PSPEntropy(3, unit=unit, unit_dim=unit_dim), shape, sizes)
    torch.testing.assert_close(metric.compute(), expected.sum(0).mean(), rtol=0.0, atol=1e-12)
    torch.testing.assert_close(metric.classwise(), expected, rtol=0.0, atol=1e-12)
    by_unit = filled(PSPEntropy(3, unit=unit, unit_dim=unit_dim, reduction="none"), shape, sizes).compute()
    torch.testing.assert_close(by_unit.view(-1), expected.sum(0), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("name", ["units", "elements of maps", "channels", "channels of a sequence"])
@pytest.mark.parametrize("order", [2, 3])
def test_higher_orders_over_batches(name, order):
    shape, unit, unit_dim = CASES[name]
    expected = mean_over_sets(*observations(*batch(shape), unit, unit_dim), order)
    metric = filled(PSPEntropy(3, order, unit, unit_dim=unit_dim), shape, 4)
    assert metric.compute().item() == pytest.approx(expected, abs=1e-11)
    assert metric.compute().dtype == torch.float64


def test_estimate():
    z, target = batch((30, 7))
    for order in (1, 2, 3):
        assert filled(PSPEntropy(3, order)).estimate() == estimate_psp_entropy(z, target, 3, order)
    metric = filled(PSPEntropy(3, 4, max_sets=10, seed=3))
    with pytest.warns(UserWarning, match=r"random sample of 10 sets"):
        assert metric.estimate() == estimate_psp_entropy(z, target, 3, 4, max_sets=10, seed=3)
    assert metric.compute().item() == metric.estimate().value  # the warning comes once


@pytest.mark.parametrize("order", [1, 2, 3])
def test_forward_gives_the_batch_and_keeps_all(order):
    z, target = batch((30, 7))
    metric = PSPEntropy(3, order, max_sets=9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a batch without a class, or a sample of sets, is no news
        for part in parts(z, target, 2):
            value = metric(*part)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert value == psp_entropy(*part, 3, order, max_sets=9)
    assert metric.update_count == 15
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert metric.compute() == psp_entropy(z, target, 3, order, max_sets=9)


@pytest.mark.parametrize("order", [1, 2])
def test_reset_forgets_the_number_of_units(order):
    metric = filled(PSPEntropy(3, order))
    metric.reset()
    z, target = batch((20, 4), seed=1)
    metric.update(z, target)
    assert metric.compute() == psp_entropy(z, target, 3, order)
    assert metric(z, target) == metric.compute()


@pytest.mark.parametrize(("order", "first"), [(1, 1), (1, 9), (2, 9)])
def test_another_number_of_units(order, first):
    """Also where the states could be added to one another, or take as many bytes."""
    metric = PSPEntropy(3, order)
    metric.update(*batch((10, first)))
    before = metric.compute()
    other = batch((10, 10))
    for use in (metric.update, metric):
        with pytest.raises(ValueError, match=rf"hold {first} units, as before, but got 10.*`unit=.channel.`"):
            use(*other)
    assert metric.compute() == before
    if hasattr(Metric, "merge_state"):
        incoming = PSPEntropy(3, order)
        incoming.update(*other)
        with pytest.raises(ValueError, match=rf"hold {first} units, as before, but got 10"):
            metric.merge_state(incoming)


def test_another_number_of_channels():
    metric = PSPEntropy(3, unit="channel")
    metric.update(*batch((10, 4, 8, 8)))
    metric.update(*batch((10, 4, 5, 7)))
    with pytest.raises(ValueError, match=r"hold 4 units, as before, but got 3\.$"):
        metric.update(*batch((10, 3, 8, 8)))


@pytest.mark.parametrize("order", [1, 2])
def test_merged_states(order):
    z, target = batch((30, 7))
    one, other = PSPEntropy(3, order), PSPEntropy(3, order)
    if not hasattr(Metric, "merge_state"):
        pytest.skip("this version of torchmetrics merges no states")
    one.update(z[:10], target[:10])
    other.update(z[10:], target[10:])
    one.merge_state(other)
    empty = PSPEntropy(3, order)
    empty.merge_state(one.metric_state)
    for metric in (one, empty):
        assert metric.compute().item() == pytest.approx(psp_entropy(z, target, 3, order).item(), abs=1e-12)
    with pytest.raises(ValueError, match="`num_classes=3`, but got 4"):
        one.merge_state(PSPEntropy(4, order))
    with pytest.raises(ValueError, match="`unit='element'`, but got 'channel'"):
        one.merge_state(PSPEntropy(3, order, "channel"))
    with pytest.raises(ValueError, match=f"`order={order}`, but got {order + 1}"):
        one.merge_state(PSPEntropy(3, order + 1))
    with pytest.raises(ValueError, match="`unit_dim=1`, but got -1"):
        PSPEntropy(3, order, "channel").merge_state(PSPEntropy(3, order, "channel", unit_dim=-1))


def two_of(make):
    """Two metrics that have computed their values, which differ."""
    metrics = make(), make()
    for seed, metric in enumerate(metrics):
        metric.persistent(True)
        z, target = batch((30, 7), seed=seed)
        metric.update(z, target) if isinstance(metric, PSPEntropy) else metric.update(z)
    assert metrics[0].compute() != metrics[1].compute()
    return metrics


@pytest.mark.parametrize("make", [partial(PSPEntropy, 3), partial(PSPEntropy, 3, 2), MeanSquarePotential])
def test_a_value_is_computed_anew_behind_a_merge(make):
    if not hasattr(Metric, "merge_state"):
        pytest.skip("this version of torchmetrics merges no states")
    one, other = two_of(make)
    one.merge_state(other)
    fresh = make()
    fresh.merge_state(one)
    assert one.compute() == fresh.compute()


@pytest.mark.parametrize("make", [partial(PSPEntropy, 3), partial(PSPEntropy, 3, 2), MeanSquarePotential])
def test_a_value_is_computed_anew_behind_a_load(make):
    one, other = two_of(make)
    one.load_state_dict(other.state_dict())
    assert one.compute() == other.compute()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        one.load_state_dict({"unit": torch.tensor(1)})


@pytest.mark.parametrize("make", [partial(PSPEntropy, 3), partial(PSPEntropy, 3, 2)])
def test_updates_leave_what_was_loaded_alone(make):
    one, other = two_of(make)
    states = other.state_dict()
    one.load_state_dict(states)
    filled(one)
    one.load_state_dict(states)
    assert one.compute() == other.compute()


@pytest.mark.parametrize("metric", [PSPEntropy(3), PSPEntropy(3, 2), PSPEntropy(3, 3), MeanSquarePotential()])
def test_before_the_first_update(metric):
    with pytest.warns(UserWarning, match="was called before the ``update`` method"):
        assert metric.compute().isnan()
    if isinstance(metric, PSPEntropy):
        assert math.isnan(metric.estimate().value)
        assert metric.estimate().number_of_sets == 0


def test_values_of_units_before_the_first_update():
    with pytest.raises(TorchMetricsUserError, match="not known before the first `update`"):
        PSPEntropy(3).classwise()
    with pytest.raises(ValueError, match="`order=1` for values of units but got `order=2`"):
        PSPEntropy(3, 2).classwise()


@pytest.mark.parametrize("order", [1, 2])
def test_absent_classes_are_named_once(order):
    metric = filled(PSPEntropy(5, order))
    with pytest.warns(UserWarning, match=r"no samples of 2 of 5 classes, which add nothing to it: \[3, 4\]"):
        value = metric.compute()
    assert value == psp_entropy(*batch((30, 7)), 3, order)
    metric.reset()
    filled(metric).compute()
    metric.estimate()
    assert order == 2 or metric.classwise()[3:].eq(0).all()


@pytest.mark.parametrize("order", [1, 2])
def test_empty_batches(order):
    z, target = batch((30, 7))
    metric = PSPEntropy(3, order)
    metric.update(z[:0], target[:0])
    with pytest.warns(UserWarning, match="no samples of 3 of 3 classes"):
        assert metric.compute().isnan()
    metric.update(z, target)
    metric.update(z[:0], target[:0])
    assert metric.compute() == psp_entropy(z, target, 3, order)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_copies_and_files(order, tmp_path):
    metric = filled(PSPEntropy(3, order))
    value = metric.compute()
    copies = [pickle.loads(pickle.dumps(metric)), metric.clone()]
    torch.save(metric, tmp_path / "metric.pt")
    copies.append(torch.load(tmp_path / "metric.pt", weights_only=False))
    for copy in copies:
        assert copy.compute() == value
        filled(copy)
        assert copy.update_count == 2 * metric.update_count
    assert metric.compute() == value


@pytest.mark.parametrize("order", [1, 2])
def test_state_dict(order):
    metric = PSPEntropy(3, order)
    assert metric.state_dict() == {}
    metric.persistent(True)
    z, target = batch((30, 9))
    metric.update(z[:20], target[:20])
    resumed = PSPEntropy(3, order)
    resumed.persistent(True)
    resumed.load_state_dict(metric.state_dict())
    with pytest.raises(ValueError, match="hold 9 units, as before, but got 10"):
        resumed.update(*batch((4, 10)))
    resumed.update(z[20:], target[20:])
    assert resumed.compute() == psp_entropy(z, target, 3, order)


def test_collection():
    z, target = batch((30, 7))
    metrics = MetricCollection(
        {
            "first": PSPEntropy(3),
            "units": PSPEntropy(3, reduction="none"),
            "second": PSPEntropy(3, 2),
            "third": PSPEntropy(3, 3),
            "square": MeanSquarePotential(),
        }
    )
    for part, classes in parts(z, target, 11):
        metrics.update(z=part, target=classes)
    metrics.clone().compute()
    values = metrics.compute()
    for name, order in (("first", 1), ("second", 2), ("third", 3)):
        assert values[name] == psp_entropy(z, target, 3, order)
    assert torch.equal(values["units"], psp_entropy(z, target, 3, reduction="none"))
    assert values["square"].item() == pytest.approx(z.double().square().mean().item(), rel=1e-6)
    assert {frozenset(group) for group in metrics.compute_groups.values()} == {
        frozenset({"first", "units"}),
        frozenset({"second", "third"}),
        frozenset({"square"}),
    }
    assert metrics(z=z, target=target)["second"] == psp_entropy(z, target, 3, 2)
    metrics.reset()
    metrics.update(z=z[:, :3], target=target)
    assert metrics.compute()["third"] == psp_entropy(z[:, :3], target, 3, 3)


@pytest.mark.parametrize("order", [1, 2])
def test_updates_inside_and_outside_of_inference_mode(order):
    """Lightning validates in inference mode."""
    z, target = batch((40, 7))
    metric = PSPEntropy(3, order)
    for start, inside in ((0, True), (10, False), (20, True), (30, False)):
        with torch.inference_mode(inside):
            (metric if start == 20 else metric.update)(z[start : start + 10], target[start : start + 10])
    assert metric.compute() == psp_entropy(z, target, 3, order)
    with torch.inference_mode():
        metric.reset()
    metric.update(z, target)
    assert metric.compute() == psp_entropy(z, target, 3, order)


@pytest.mark.parametrize("order", [1, 2])
def test_states_take_little_memory(order):
    metric = filled(PSPEntropy(3, order), (40, 1003), 10)
    states = [
        state for value in metric.metric_state.values() for state in (value if isinstance(value, list) else [value])
    ]
    memory = sum(state.nbytes for state in states)
    assert memory <= (3 * 1003 * 8 + 100 if order == 1 else 40 * (126 + 4) + 100)


@pytest.mark.parametrize(
    "metric", [PSPEntropy(3), PSPEntropy(3, 2), PSPEntropy(3, reduction="none"), MeanSquarePotential()]
)
def test_plot(metric):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    z, target = batch((30, 7))
    arguments = (z,) if isinstance(metric, MeanSquarePotential) else (z, target)
    values = [metric(*arguments), metric(*arguments)]
    for shown in (None, values[0], values):
        figure, _ = metric.plot(shown)
        pyplot.close(figure)


@pytest.mark.parametrize(
    ("metric", "label"),
    [
        (MeanSquarePotential(), "mean squared potential ⟨z²⟩"),
        (PSPEntropy(3), "PSP-entropy (bits a unit)"),
        (PSPEntropy(3, 2), "PSP-entropy (bits a pair of units)"),
        (PSPEntropy(3, 3), "PSP-entropy (bits a set of 3 units)"),
    ],
)
def test_pictures_have_units(metric, label):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    _, axes = metric.plot(torch.tensor(1.0), figure.subplots())
    assert axes.get_ylabel() == label


@pytest.mark.parametrize(
    "metrics",
    [
        [[0.0]],
        [[10.0]],
        [[0.0, 1e-3]],
        [[9.999, 10.0, 10.0001]],
        [[1.0, 2.0], [7.0, 30.0]],
        [[5.0], [0.1]],
        [[math.nan]],
    ],
    ids=str,
)
def test_pictures_cut_no_marker(metrics):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.subplots()
    for values in metrics:  # all in the same axes
        PSPEntropy(3).plot([torch.tensor(value) for value in values], axes)
    bottom, top = axes.bbox.intervaly
    for line in axes.lines:
        radius = line.get_markersize() / 2 * figure.dpi / 72
        for place in axes.transData.transform(line.get_xydata())[:, 1]:
            assert math.isnan(place) or bottom + radius <= place <= top - radius


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float64])
def test_mean_square_over_batches(precision):
    z = batch((30, 4, 5))[0].to(precision) * 300  # of which float16 cannot hold the squares
    metric = MeanSquarePotential()
    for part in z.split(7):
        assert metric(part).item() == pytest.approx(mean_square_potential(part).item(), rel=1e-6)
    assert metric.compute().item() == pytest.approx(z.double().square().mean().item(), rel=1e-6)
    assert metric.compute().dtype == torch.float64
    with pytest.raises(TypeError, match=r"real floating point tensor but got torch\.int64"):
        metric.update(torch.ones(3, dtype=torch.int64))


def test_mean_square_sums_exactly_over_many_batches():
    metric = MeanSquarePotential()
    metric.update(torch.full((1, 1), 4096.0))
    for _ in range(100):
        metric.update(torch.ones(1, 1))  # each lost beside 2²⁴ in float32
    assert metric.compute().item() == pytest.approx((2**24 + 100) / 101, rel=1e-12)


def test_broken_values_show():
    metric = MeanSquarePotential()
    metric.update(torch.tensor([[1.0, math.inf]]))
    assert metric.compute().item() == math.inf
    metric.update(torch.tensor([[1.0, math.nan]]))
    assert metric.compute().isnan()


def test_what_torchmetrics_asks():
    assert (PSPEntropy.is_differentiable, PSPEntropy.higher_is_better, PSPEntropy.full_state_update) == (
        False,
        None,
        False,
    )
    assert (MeanSquarePotential.is_differentiable, MeanSquarePotential.higher_is_better) == (True, None)
    with pytest.raises(ValueError, match="Unexpected keyword arguments: `classes`"):
        PSPEntropy(3, classes=4)
    with pytest.raises(ValueError, match="`order` to be at least 1 but got 0"):
        PSPEntropy(3, 0)
    with pytest.raises(ValueError, match="at least 3 units with `order=3` but got 2"):
        PSPEntropy(3, 3).update(*batch((5, 2)))
    on_cpu = filled(PSPEntropy(3, 2, compute_on_cpu=True))
    assert on_cpu.compute() == filled(PSPEntropy(3, 2)).compute()
