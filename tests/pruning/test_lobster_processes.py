"""Two processes that train and prune together on a CPU take the same decisions."""

import pytest

from tests.support.processes import PROCESSES, results_of, without_errors
from tests.support.processes.lobster_worker import EPOCHS, RUNS, TOLERANCE
from tests.support.pruning.training import assert_state

pytestmark = pytest.mark.first


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each process kept of each run, by name of the run."""
    return without_errors(results_of("lobster_worker", (*RUNS, "resumed"), tmp_path_factory.mktemp("processes")))


@pytest.mark.parametrize("name", ["differing", "synchronised"])
def test_both_take_the_same_decisions(results, name):
    first, second = results[name]
    assert first["history"] == second["history"]
    assert len(first["history"]) > 1
    assert first["history"][0]["threshold"] > 0
    assert_state(first["masks"], second["masks"])
    assert_state(first["final"], second["final"])
    assert first["epochs"] == second["epochs"]
    assert all((first["final"][key][~mask] == 0).all() for key, mask in first["masks"].items())


def test_the_bound_is_kept_by_the_mean_over_processes(results):
    """The training stopped at a plateau, so what it found there can be tried out on what remains."""
    for name in ("differing", "synchronised"):
        both = results[name]
        last = both[0]["history"][-1]
        assert both[0]["epochs"] < EPOCHS
        mean = sum(result["loss"] for result in both) / PROCESSES
        assert last["loss_after"] == pytest.approx(mean, rel=1e-5)
        assert last["loss_after"] <= (1 + TOLERANCE) * last["loss_before"]


def test_a_resumed_training_equals_an_uninterrupted_one(results):
    for resumed, whole in zip(results["resumed"], results["differing"], strict=True):
        assert resumed["history"] == whole["history"]
        assert_state(resumed["masks"], whole["masks"])
        assert_state(resumed["final"], whole["final"])
