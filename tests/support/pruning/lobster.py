"""A small classifier that has learned, and its training under `LobsterPruning`."""

import copy
from functools import cache

import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from tests.support.small import CLASSES, FEATURES, Classifier, quiet_trainer

IN_TURN = {"lam": 1e-2, "tolerance": 0.1, "patience": 3, "min_improvement": 0.05}


# Every validation but the first ends a plateau.
AT_ONCE = {"lam": 1e-2, "tolerance": 0.1, "patience": 1, "min_improvement": 1.0}


def data(count=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, FEATURES, dtype=torch.float64, generator=generator)
    labels = (features[:, :CLASSES] + 0.1 * torch.randn(count, CLASSES, generator=generator)).argmax(1)
    return DataLoader(TensorDataset(features, labels), batch_size=32)


@torch.no_grad()
def loss_of(module):
    """The validation loss, written out."""
    features, labels = data(64, seed=1).dataset.tensors
    return functional.cross_entropy(module(features), labels).item()


@cache
def trained():
    """The state of a classifier that has learned: an untrained one loses little with all of its weights."""
    torch.manual_seed(0)
    module = Classifier().double()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.03)
    features, labels = data().dataset.tensors
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(module(features), labels).backward()
        optimizer.step()
    return module.state_dict()


class Model(Classifier):
    """Starts from there. Keeps weights and validation losses, and what the weights are when a validation has ended."""

    def __init__(self):
        super().__init__()
        self.double().load_state_dict(trained())
        self.validated = []
        self.weights = []
        self.ended = []

    def on_after_backward(self):
        """The gradients are of no interest."""

    def on_train_batch_end(self, *_):
        self.last = copy.deepcopy(self.state_dict())

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            self.validated.append(loss_of(self))
            self.weights.append(copy.deepcopy(self.state_dict()))

    def on_validation_end(self):
        if not self.trainer.sanity_checking:
            self.ended.append(copy.deepcopy(self.state_dict()))


def train(pruning, *callbacks, epochs=60, module=None, checkpoint=None, **settings):
    torch.manual_seed(0)
    module = module or Model()
    trainer = quiet_trainer(pruning, *callbacks, max_epochs=epochs, **settings)
    trainer.fit(module, data(), data(64, seed=1), ckpt_path=checkpoint)
    return trainer, module


def pruned(state, masks):
    return {name: value * masks.get(name, 1) for name, value in state.items()}


def assert_same(one, other):
    assert list(one) == list(other)
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
