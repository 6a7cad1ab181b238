"""The classifier's loss, error and optimiser."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from support.classifier import Classifier
from tests.support.small import quiet_trainer


def batch(generator_seed=0):
    generator = torch.Generator().manual_seed(generator_seed)
    images = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, 3, (8,), generator=generator)


def reference_loss(network, images, labels, label_smoothing, l1):
    weight, bias = (parameter.detach().numpy() for parameter in network.parameters())
    logits = images.numpy() @ weight.T + bias
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    targets = (1 - label_smoothing) * np.eye(3)[labels.numpy()] + label_smoothing / 3
    loss = -(targets * log_probabilities).sum(1).mean()
    error = (logits.argmax(1) != labels.numpy()).mean()
    return loss, loss + l1 * (np.abs(weight).sum() + np.abs(bias).sum()), error


@pytest.mark.parametrize(("label_smoothing", "l1"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.01), (0.2, 0.03)])
def test_loss_and_error(label_smoothing, l1):
    torch.manual_seed(0)
    network = nn.Linear(5, 3).double()
    module = Classifier(network, learning_rate=0.0, label_smoothing=label_smoothing, l1=l1)
    images, labels = batch()
    unseen = batch(1)
    seen = []
    module.on_before_backward = lambda loss: seen.append(loss.item())
    trainer = quiet_trainer(max_epochs=1, num_sanity_val_steps=0)
    loaders = [DataLoader(TensorDataset(*each), batch_size=8) for each in ((images, labels), unseen)]
    trainer.fit(module, *loaders)
    cross_entropy, loss, _ = reference_loss(network, images, labels, label_smoothing, l1)
    assert seen == [pytest.approx(loss, rel=1e-12)]
    assert trainer.callback_metrics["train_loss"].item() == pytest.approx(cross_entropy, rel=1e-6)
    plain, _, error = reference_loss(network, *unseen, 0.0, 0.0)
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(plain, rel=1e-6)
    assert trainer.callback_metrics["val_error"].item() == pytest.approx(error, rel=1e-6)
    (tested,) = trainer.test(module, loaders[1], verbose=False)
    assert tested["test_error"] == pytest.approx(error, rel=1e-6)
    assert tested["test_loss"] == pytest.approx(plain, rel=1e-6)


def test_the_last_batch_counts_by_its_size():
    torch.manual_seed(0)
    network = nn.Linear(5, 3).double()
    unseen = batch(1)
    trainer = quiet_trainer(max_epochs=1, limit_val_batches=None)
    trainer.validate(Classifier(network), DataLoader(TensorDataset(*unseen), batch_size=5), verbose=False)
    _, _, error = reference_loss(network, *unseen, 0.0, 0.0)
    assert trainer.callback_metrics["val_error"].item() == pytest.approx(error, rel=1e-6)


@pytest.mark.slow
def test_two_processes_log_the_values_of_both():
    torch.manual_seed(0)
    network = nn.Linear(5, 3).double()
    images, labels = batch(1)
    trainer = quiet_trainer(max_epochs=1, num_sanity_val_steps=0, devices=2, strategy="ddp_spawn")
    loaders = [DataLoader(TensorDataset(images, labels), batch_size=2) for _ in range(2)]
    trainer.fit(Classifier(network, learning_rate=0.0), *loaders)
    cross_entropy, _, error = reference_loss(network, images, labels, 0.0, 0.0)
    values = {name: value.item() for name, value in trainer.callback_metrics.items()}
    expected = {"train_loss": cross_entropy, "val_loss": cross_entropy, "val_error": error}
    assert values == pytest.approx(expected, rel=1e-6)


def test_optimiser_and_milestones():
    module = Classifier(nn.Linear(2, 2), 0.5, momentum=0.9, nesterov=True, weight_decay=0.01, milestones=(2, 3))
    configured = module.configure_optimizers()
    (group,) = configured["optimizer"].param_groups
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.5, 0.9, True, 0.01)
    rates = []
    for _ in range(4):
        rates.append(group["lr"])
        configured["optimizer"].step()
        configured["lr_scheduler"].step()
    assert rates == pytest.approx([0.5, 0.5, 0.05, 0.005])
