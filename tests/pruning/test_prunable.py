"""Which parameters can be pruned."""

from torch import nn
from torchmetrics import Metric

from lightning_psp.pruning import magnitude_masks, sparsity


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
