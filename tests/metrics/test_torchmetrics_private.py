"""Each private name of TorchMetrics is taken away: what then happens."""

import pytest
import torch
from torchmetrics import Metric

from lightning_psp.metrics import MeanSquarePotential, PSPEntropy
from lightning_psp.metrics import torchmetrics_private as private


def filled():
    entropy = PSPEntropy(num_classes=2)
    entropy.update(torch.tensor([[1.0, -1.0], [2.0, 1.0], [-1.0, -3.0]]), torch.tensor([0, 0, 1]))
    return entropy


@pytest.mark.parametrize("name", [private.SYNCHRONISES, private.COMPUTED, private.UPDATES])
def test_entropies_are_the_same_without(name):
    entropy = filled()
    expected = entropy.classwise()
    delattr(entropy, name)
    assert torch.equal(entropy.classwise(), expected)
    private.note_updates(entropy, 1)
    assert not hasattr(entropy, name)
    assert private.synchronises(entropy)


def test_a_metric_is_taken_for_not_synchronised_without_the_name():
    entropy = filled()
    entropy._is_synced = True
    assert private.is_synchronised(entropy)
    delattr(entropy, private.IS_SYNCHRONISED)  # TorchMetrics itself computes nothing without it
    assert not private.is_synchronised(entropy)


def test_with_the_names_updates_count_and_the_last_value_is_forgotten():
    entropy = filled()
    entropy.compute()
    private.note_updates(entropy, 2)
    assert entropy.update_count == 3
    assert entropy._computed is None


def test_a_metric_that_was_told_not_to_synchronise_does_not():
    entropy = PSPEntropy(num_classes=2, sync_on_compute=False)
    delattr(entropy, private.SYNCHRONISES)
    assert not private.synchronises(entropy)


@pytest.mark.parametrize(
    "metric", [PSPEntropy(num_classes=2), MeanSquarePotential()], ids=lambda each: type(each).__name__
)
def test_pictures_are_an_error_that_says_what_to_do(metric, monkeypatch):
    monkeypatch.delattr(Metric, private.PLOT)
    with pytest.raises(NotImplementedError, match=f"draw {type(metric).__name__}.*compute"):
        metric.plot(torch.tensor(1.0))
