"""Two processes that share the points of a plane: the values of one process."""

import pytest
import torch

from lightning_psp.analysis import loss_plane
from tests.support.processes import results_of, without_errors
from tests.support.processes.plane_worker import SIZE, arguments

pytestmark = pytest.mark.first


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each process found."""
    return without_errors(results_of("plane_worker", ["found"], tmp_path_factory.mktemp("planes")))["found"]


@pytest.fixture(scope="module")
def alone():
    """The plane of one process."""
    return loss_plane(*arguments(), size=SIZE, by_layer=True)


def test_both_have_the_whole_plane(results, alone):
    for found in results:
        for measure, value in alone.values.items():
            assert torch.equal(found["values"][measure], value)
        for measure, layers in alone.layers.items():
            assert all(torch.equal(found["layers"][measure][layer], value) for layer, value in layers.items())


def test_points_are_shared(results):
    assert [found["calls"] for found in results] == [5 * 3, 4 * 3]  # nine points of three batches


def test_an_error_of_one_is_told_by_both(results):
    assert results[1]["failure"] == "ArithmeticError: of this process alone"
    assert "Process 1 failed, and with it this one: ArithmeticError: of this process" in results[0]["failure"]


def test_points_of_both_are_resumed(results, alone):
    for found in results:
        assert found["files"] == ["points.pt", "points.pt.process1"]
        assert found["files after"] == ["points.pt"]
        for measure, value in found["resumed"].items():
            assert torch.equal(value, alone.values[measure])
    assert sum(found["rest"] for found in results) == (9 - 5 - 2) * 3


def test_what_both_refuse(results):
    for found in results:
        assert (
            "Expected all processes to have the same arguments but got different values of `data`"
            in found["other data"]
        )
        assert "begun with other values of `loss`, `margin`" in found["other file"]
        assert "DistributedDataParallel, use `module.module`" in found["wrapped"]
        assert 'no SyncBatchNorm with batch_norm="reestimate"' in found["synchronised"]
