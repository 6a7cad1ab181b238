"""Means over batches."""

import torch

from lightning_psp.callback.layer_means import LayerMeans


def test_means_over_batches_with_different_layers_and_sizes():
    means = LayerMeans()
    means.update({"a": (torch.tensor(2.0), 2), "b": (torch.tensor(3.0), 1)})
    means.update({"a": (torch.tensor(4.0), 1)})
    means.update({})
    assert means.compute() == {"a": 2.0, "b": 3.0}
    resumed = LayerMeans()
    resumed.load(means.sums())
    resumed.update({"b": (torch.tensor(1.0), 3)})
    assert resumed.compute() == {"a": 2.0, "b": 1.0}
