"""The small classifier in validation and test runs, and what the callback logs and says of PSP-entropy in them."""

import torch

from tests.support.small import Classifier, loader, quiet_trainer

HIDDEN = ["first", "second"]


@torch.no_grad()
def hidden_potentials(module, features):
    first = features @ module.first.weight.T + module.first.bias
    second = (first * torch.sigmoid(first)) @ module.second.weight.T + module.second.bias
    return dict(zip(HIDDEN, (first, second), strict=True))


def data(batches=6, seed=0):
    found = loader(batches, seed)
    return found, *found.dataset.tensors


def messages(caplog):
    return [record.getMessage() for record in caplog.records if "PSP-entropy" in record.getMessage()]


def evaluated(callback, module, loaders, stage="test", **settings):
    trainer = quiet_trainer(callback, **settings)
    getattr(trainer, {"val": "validate", "test": "test"}[stage])(module, loaders, verbose=False)
    return {key: float(value) for key, value in trainer.callback_metrics.items() if "entropy" in key}


def module_of(cls=Classifier):
    torch.manual_seed(1)
    return cls().double()
