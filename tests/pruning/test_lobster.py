"""LobsterPruning: plateaus, thresholds within the bound, what remains at the end, errors."""

import pytest
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_psp.pruning import LobsterPruning, sparsity
from tests.support.small import CLASSES, FEATURES, Classifier, quiet_trainer


def data(count=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, FEATURES, dtype=torch.float64, generator=generator)
    labels = (features[:, :CLASSES] + 0.5 * torch.randn(count, CLASSES, generator=generator)).argmax(1)
    return DataLoader(TensorDataset(features, labels), batch_size=16)


class Kept(Classifier):
    """Keeps the validation losses."""

    def __init__(self):
        super().__init__()
        self.validated = []

    def on_validation_epoch_end(self):
        self.validated.append(float(self.trainer.callback_metrics["val_loss"]))


def train(pruning, *callbacks, epochs=60, module=None, **settings):
    torch.manual_seed(0)
    module = module or Kept().double()
    trainer = quiet_trainer(pruning, *callbacks, max_epochs=epochs, **settings)
    trainer.fit(module, data(), data(32, seed=1))
    return trainer, module


@torch.no_grad()
def loss(module):
    """The validation loss, written out."""
    features, labels = data(32, seed=1).dataset.tensors
    return functional.cross_entropy(module(features), labels).item()


def test_a_training_prunes_and_keeps_the_bound():
    pruning = LobsterPruning(lam=1e-3, tolerance=0.05, patience=3)
    trainer, module = train(pruning, epochs=300)
    shares = [step.sparsity for step in pruning.history]
    assert len(shares) > 2
    assert shares == sorted(shares)
    for step in pruning.history:
        assert step.loss_after <= 1.05 * step.loss_before
        assert step.evaluations <= 15
    assert sparsity(module).network == sparsity(pruning.masks).network == shares[-1] > 0.3
    assert trainer.current_epoch < 300
    # the last plateau found nothing, and its best weights remain
    assert pruning.history[-1].threshold == 0
    assert loss(module) == pytest.approx(pruning.history[-1].loss_after, rel=1e-12)
