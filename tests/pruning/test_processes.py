"""Two processes that train together on a CPU: the same masks and the same weights in both."""

import pytest
import torch

from tests.support.processes import CAN_SHARD, results_of
from tests.support.processes.pruning_worker import RUNS
from tests.support.pruning.training import assert_state

pytestmark = pytest.mark.first


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each process kept of each run, by name of the run, and the folder."""
    folder = tmp_path_factory.mktemp("processes")
    return {"folder": folder, **results_of("pruning_worker", RUNS, folder)}


@pytest.mark.parametrize("name", [name for name in RUNS if name != "sharded"])
def test_both_hold_the_masks_of_the_first(results, name):
    for result in results[name]:
        assert "error" not in result, result["error"]
        assert_state(result["masks"], result["expected"])
        assert [place for place, largest in result["seen"] if largest != 0] == []
        assert {place for place, _ in result["seen"]} >= {"training step", "validation step", "at the end"}
        assert result["sparsity"] == pytest.approx(0.6, abs=1e-4)
    first, second = results[name]
    assert_state(first["final"], second["final"])
    assert all((first["final"][key][mask] != 0).any() for key, mask in first["masks"].items())
    checkpoint = torch.load(results["folder"] / f"{name}.ckpt", weights_only=True)
    assert_state(checkpoint["callbacks"]["MaskedTraining"]["masks"], first["masks"])
    assert_state(checkpoint["state_dict"], first["final"])


def test_sharded_weights_are_refused(results):
    if not CAN_SHARD:
        pytest.skip("this version of torch shards weights on accelerators only")
    for result in results["sharded"]:
        assert "NotImplementedError: Parameter 'network.fc1.weight' cannot be pruned: each process" in result["error"]
        assert "DDPStrategy()" in result["error"]
