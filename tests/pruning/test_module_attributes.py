"""Attributes of modules that are given back, however many numbers and whenever they came."""

from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest
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


CONTAINERS = {
    "list": ([1, [2]], lambda each: each.append(3)),
    "dict": ({"a": [1], "b": 2}, lambda each: each.update(a=0, c=1)),
    "ordered dict": (OrderedDict(b=1, a=2), lambda each: each.move_to_end("b")),
    "default dict": (defaultdict(list, a=[1]), lambda each: each["b"].append(1)),
    "counter": (Counter("aab"), lambda each: each.update("bc")),
    "array": (np.zeros(2), lambda each: each.__iadd__(1)),
    "arrays in a dict": ({"a": np.zeros(2)}, lambda each: each["a"].fill(1)),
    "deque": (deque([1, 2], maxlen=2), lambda each: each.append(3)),
    "set": ({1, 2}, lambda each: each.discard(1)),
    "in a tuple": (([1],), lambda each: each[0].append(2)),
    "in a list": ([[1]], lambda each: each[0].append(2)),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_that_others_hold(name):
    """It is the same one afterwards, with what was in it, in the order of before."""
    container, change = CONTAINERS[name]
    before = repr(container)
    module = nn.Module()
    module.held = container
    attributes = ModuleAttributes(module)
    for _ in range(2):
        change(container)
        assert repr(container) != before
        attributes.restore()
        assert module.held is container
        assert repr(container) == before
    module.held = None
    attributes.restore()
    assert module.held is container


def test_tensors_in_a_tuple():
    module = nn.Module()
    module.state = (torch.ones(2), torch.zeros(2))
    attributes = ModuleAttributes(module)
    module.state[0].add_(1)
    attributes.restore()
    assert torch.equal(torch.stack(module.state), torch.tensor([[1.0, 1.0], [0.0, 0.0]]))


def test_a_container_that_has_left_the_module():
    module = nn.Module()
    module.outputs = left = [1]
    before = ModuleAttributes(module)
    module.outputs.append(2)
    module.outputs = [3]
    now, containers = ModuleAttributes(module), before.containers_as_now()
    before.restore()
    assert (left, module.outputs is left) == ([1], True)
    containers()
    now.restore()
    assert (left, module.outputs) == ([1, 2], [3])


class Own(list):
    """Of a class of the user's."""


def test_what_stays_as_it_is():
    module = nn.Module()
    module.own, module.constant = own, constant = Own([1]), np.zeros(2)
    constant.flags.writeable = False
    attributes = ModuleAttributes(module)
    own.append(2)
    attributes.restore()
    assert module.own is own == [1, 2]
    assert module.constant is constant
