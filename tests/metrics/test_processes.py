"""Two processes that fill the same metrics: the values of one process with all samples."""

import math

import pytest
import torch

from lightning_psp.functional import estimate_psp_entropy, psp_entropy
from tests.support.entropy_reference import classwise, mean_over_sets, observations
from tests.support.processes import results_of, without_errors
from tests.support.processes.metric_worker import CLASSES, RUNS, data

pytestmark = pytest.mark.first


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each process found in each run, by name of the run."""
    return without_errors(results_of("metric_worker", RUNS, tmp_path_factory.mktemp("metrics")))


@pytest.mark.parametrize("name", ["uneven", "by_class", "one_rests"])
def test_values(results, name):
    z, target = data()
    states, classes = observations(z, target)
    by_unit = torch.from_numpy(classwise(states, classes, CLASSES))
    for rank, result in enumerate(results[name]):
        values = result["values"]
        torch.testing.assert_close(values["classwise"], by_unit, rtol=0.0, atol=1e-12)
        torch.testing.assert_close(values["units"], by_unit.sum(0), rtol=0.0, atol=1e-12)
        for order in (1, 2, 3):
            expected = mean_over_sets(states, classes, order)
            assert values[f"order {order}"].item() == pytest.approx(expected, abs=1e-12)
            assert values[f"estimate of order {order}"].value == values[f"order {order}"].item()
        assert values["estimate of order 5"] == estimate_psp_entropy(z, target, CLASSES, 5, max_sets=100)
        assert values["square"].item() == pytest.approx(z.double().square().mean().item(), rel=1e-6)
        about_psp = [warning for warning in result["warnings"] if warning.startswith("PSP-entropy")]
        assert len(about_psp) == (rank == 0)  # that order 5 is a sample, once
        assert all("random sample of 100 sets" in warning for warning in about_psp)


@pytest.mark.parametrize("name", ["uneven", "by_class", "one_rests", "both_rest"])
def test_processes_go_on_with_their_own_samples(results, name):
    """Every process counts its samples of the second time once, and those of the first time not again."""
    z, target = data()
    together = psp_entropy(torch.cat([z, z]), torch.cat([target, target]), CLASSES)
    for result in results[name]:
        assert result["values"]["again order 1"].item() == pytest.approx(together.item(), abs=1e-12)
        expected = psp_entropy(z, target, CLASSES, 2)
        assert result["values"]["again order 2"].item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("name", ["uneven", "by_class", "one_rests", "both_rest"])
@pytest.mark.parametrize("order", [1, 2])
def test_a_metric_that_keeps_the_samples_of_all_takes_more(results, name, order):
    z, target = data()
    more = -z.roll(1, dims=0)
    together = (more, target) if name == "both_rest" else (torch.cat([z, more]), torch.cat([target, target]))
    expected = psp_entropy(*together, CLASSES, order).item()
    for result in results[name]:
        assert result["values"][f"kept order {order}"].item() == pytest.approx(expected, abs=1e-12)


def test_no_sample_in_any_process(results):
    for result in results["both_rest"]:
        for order in (1, 2, 3, 5):
            assert result["values"][f"order {order}"].isnan()
            assert math.isnan(result["values"][f"estimate of order {order}"].value)


def test_layers_of_different_widths_are_refused_by_both(results):
    for result in results["different_units"]:
        for key in ("order 1", "order 2", "order 3", "estimate of order 2", "classwise", "units"):
            assert "hold 9 units, as before, but got 10" in result["values"][key]
