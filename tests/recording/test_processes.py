"""Two processes that train in a plain loop with `fully_shard`: same gradient as one process on the whole batch."""

import pytest
import torch
from torch.nn import functional

from tests.support.followed import assert_same, mean_square
from tests.support.processes import CAN_SHARD, results_of
from tests.support.processes.recording_worker import LAM, RUNS, data, network

pytestmark = pytest.mark.first


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each process found in each run, by name of the run."""
    if not CAN_SHARD:
        pytest.skip("this version of torch shards weights on accelerators only")
    return results_of("recording_worker", RUNS, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("name", [name for name in RUNS if name != "split"])
def test_gradients_of_sharded_weights(results, name):
    model, total = network(), 0.0
    for features, labels in zip(*data(), strict=True):
        first = functional.linear(features, model.first.weight, model.first.bias)
        second = functional.linear(first * torch.sigmoid(first), model.second.weight, model.second.bias)
        third = functional.linear(second.clamp(min=0), model.third.weight, model.third.bias)
        loss = -third.log_softmax(1)[torch.arange(len(labels)), labels].mean()
        total = total + loss + LAM * sum(map(mean_square, (first, second, third))) / 3
    expected = torch.autograd.grad(total, list(model.parameters()))
    for result in results[name]:
        assert "error" not in result, result["error"]
        assert_same(result["gradients"], expected)


def test_units_split_over_processes_are_refused(results):
    for result in results["split"]:
        assert "Parameter 'first.weight' is split over processes (tensor parallelism)" in result["error"]
