"""Attributes of modules that are given back, however many numbers and whenever they came."""

import torch
from torch import nn
from torchmetrics.classification import MulticlassConfusionMatrix

from lightning_psp.pruning.module_attributes import ModuleAttributes

MANY = 2100  # classes, whose matrix has more numbers than what is taken for data


def test_a_metric_with_a_large_state():
    module = nn.Module()
    module.metric = MulticlassConfusionMatrix(MANY, validate_args=False)
    module.metric.update(torch.tensor([1]), torch.tensor([2]))
    attributes = ModuleAttributes(module)
    for _ in range(2):
        module.metric.update(torch.tensor([3, 4]), torch.tensor([3, 4]))
        attributes.restore()
        assert module.metric.confmat.sum() == module.metric.confmat[2, 1] == 1


def test_an_attribute_that_comes_later_goes():
    module = nn.Linear(1, 1)
    attributes = ModuleAttributes(module)
    module.late = 1
    attributes.restore()
    assert "late" not in vars(module)
