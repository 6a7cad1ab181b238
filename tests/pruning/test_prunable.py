"""Which parameters can be pruned."""

import pytest
import torch
from torch import nn
from torchmetrics import Metric

from lightning_psp.pruning import apply_masks, magnitude_masks, remove_constant_units, sparsity


class Judges(Metric):
    """As a Fréchet inception distance does: by a network of its own."""

    def __init__(self, judged):
        super().__init__()
        self.features = nn.Linear(3, 2)
        self.judged = judged

    def update(self):
        """Takes nothing in."""

    def compute(self):
        """Has nothing to say."""


def test_networks_of_metrics_are_left_alone():
    network = nn.Linear(3, 3)
    module = nn.ModuleDict({"judge": Judges(network), "network": network})
    masks = magnitude_masks(module, sparsity=0.5)
    assert masks.keys() == sparsity(module).layers.keys() == {"judge.judged.weight"}


@pytest.mark.parametrize(
    "call",
    [
        sparsity,
        lambda layer: magnitude_masks(layer, sparsity=0.5),
        lambda layer: apply_masks(layer, {"weight": torch.ones(2, 3, dtype=torch.bool)}),
        lambda layer: remove_constant_units(layer, [(torch.randn(4, 3),)]),
    ],
)
def test_weights_without_memory(call):
    with pytest.raises(
        ValueError, match=r"'weight' cannot be pruned: it is on the meta device, without numbers\. Give"
    ):
        call(nn.Linear(3, 2, device="meta"))
