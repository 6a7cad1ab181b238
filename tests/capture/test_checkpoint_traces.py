"""What activation checkpoints hold and leave behind under a watch: memory, errors, torch's own functions."""

import gc
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from lightning_psp import PSPCallback, record_potentials
from tests.support.cases import Case, classification_batch, cross_entropy
from tests.support.cases.checkpoints import (
    KINDS,
    around,
    checkpoint_cases,
    checkpointed,
    flat,
    layer,
    originals_are_back,
)
from tests.support.gradients import assert_equal_gradients
from tests.support.lightning_cases import fit
from tests.support.reference import reference_step
from tests.support.small import BATCH, FEATURES, Classifier, loader, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


# --- memory ----------------------------------------------------------------------------------------------------------


def bytes_of_tensors() -> int:
    gc.collect()
    storages = {}
    for found in gc.get_objects():
        if type(found) in (Tensor, nn.Parameter) and found.layout is torch.strided:
            storage = found.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


WIDTH, ROWS = 16, 512
SIZE = 8 * WIDTH * ROWS  # of one potential


class Held(Classifier):
    """Says what is held of a deep network between forward and backward."""

    def __init__(self, reentrant: bool, is_checkpointed: bool, loss_inside: bool) -> None:
        super().__init__()
        self.entrance = nn.Linear(FEATURES, WIDTH)
        parts = [nn.Linear(WIDTH, WIDTH) for _ in range(8)]
        self.parts = nn.ModuleList(parts)
        self.head = nn.Linear(WIDTH, WIDTH)
        self.reentrant, self.is_checkpointed, self.loss_inside = reentrant, is_checkpointed, loss_inside
        self.storages: list[StorageWeakRef] = []
        self.alive = self.bytes = -1

    def deep(self, x: Tensor, labels: Tensor) -> Tensor:
        for index, part in enumerate(self.parts):
            z = part(x)
            self.storages.append(StorageWeakRef(z.untyped_storage()))
            x = F.relu(z, inplace=True) if index % 2 else torch.sigmoid(z)
        if not self.loss_inside:
            return x.sum(1)
        logits = self.head(x)
        self.storages.append(StorageWeakRef(logits.untyped_storage()))
        return F.cross_entropy(logits, labels)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        features, labels = batch
        x = torch.tanh(self.entrance(features.repeat(ROWS // BATCH, 1)))
        labels = labels.repeat(ROWS // BATCH)
        checkpoint = partial(torch.utils.checkpoint.checkpoint, use_reentrant=self.reentrant)
        return (checkpoint(self.deep, x, labels) if self.is_checkpointed else self.deep(x, labels)).mean()

    def on_before_backward(self, loss: Tensor) -> None:
        self.alive = sum(not storage.expired() for storage in self.storages)
        self.bytes = bytes_of_tensors()

    def on_after_backward(self) -> None:
        pass


def held(callbacks: list[PSPCallback], **settings: bool) -> tuple[int, int]:
    """The potentials and the bytes that are alive between forward and backward."""
    torch.manual_seed(0)
    module = Held(**settings).double()
    quiet_trainer(*callbacks, max_steps=1).fit(module, loader(1))
    return module.alive, module.bytes


@pytest.mark.parametrize("loss_inside", [False, True])
@KINDS
def test_no_potential_is_held(reentrant, loss_inside):
    settings = {"reentrant": reentrant, "loss_inside": loss_inside}
    alive, size = held([], is_checkpointed=True, **settings)
    penalised_alive, penalised_size = held([PSPCallback(lam=0.1)], is_checkpointed=True, **settings)
    unchecked_alive, unchecked_size = held([PSPCallback(lam=0.1)], is_checkpointed=False, **settings)

    assert alive == penalised_alive == 0
    # one potential lies outside the checkpoint
    assert penalised_size < size + 1.5 * SIZE
    # what the measurement sees when potentials are held
    assert unchecked_alive >= 8
    assert unchecked_size > size + 8 * SIZE


# --- errors ----------------------------------------------------------------------------------------------------------


class Overwritten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        z = self.fc(x)
        y = torch.sigmoid(z)
        z += 1
        return y + z


@KINDS
def test_overwritten_potential_is_refused(reentrant):
    batch = classification_batch(5, 6)
    with pytest.raises(RuntimeError, match=r"network\.2\.part\.fc.*overwritten in place"):
        fit(checkpointed(Overwritten, reentrant), cross_entropy, [batch], PSPCallback(), precision=32)
    assert originals_are_back()


class Forgetful(nn.Module):
    """Does without its nonlinearity when it runs again, or without a part of its potentials."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.fc = nn.Linear(8, 8)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        z = self.fc(x)
        if self.runs == 1:
            return z + torch.round(z)
        return torch.round(z[: self.rows]) if self.rows else z


@pytest.mark.parametrize("rows", [0, 3])
@KINDS
def test_potential_that_does_not_come_again_is_refused(reentrant, rows):
    callback = PSPCallback(activations=("torch.round",))
    batch = classification_batch(5, 6)
    with pytest.raises(RuntimeError, match=r"network\.2\.part\.fc.*lie inside an activation checkpoint"):
        fit(checkpointed(partial(Forgetful, rows), reentrant), cross_entropy, [batch], callback, precision=32)


def test_originals_are_back_after_an_error():
    def failing(network, batch):
        network(batch[0])
        assert not originals_are_back()
        raise ZeroDivisionError

    def failing_inside(x):
        raise ZeroDivisionError

    batch = classification_batch(5, 6)
    with pytest.raises(ZeroDivisionError):
        fit(checkpointed(layer, False), failing, [batch], PSPCallback(), precision=32)
    assert originals_are_back()
    network = checkpointed(layer, False)
    with pytest.raises(ZeroDivisionError), record_potentials(network):
        torch.utils.checkpoint.checkpoint(failing_inside, batch[0], use_reentrant=False)
    assert originals_are_back()
    with record_potentials(network), record_potentials(network):
        network(batch[0])
    assert originals_are_back()


def test_a_step_goes_on_after_an_error_inside_a_checkpoint():
    """The potentials behind it are no longer taken for potentials inside."""

    def failing(x: Tensor) -> Tensor:
        raise ZeroDivisionError

    def loss(network, batch):
        x = torch.ones(2, 2, requires_grad=True)
        with pytest.raises(ZeroDivisionError):
            torch.utils.checkpoint.checkpoint(failing, x, use_reentrant=False)
        return cross_entropy(network, batch)

    case = Case("plain", lambda: around(layer()), flat, loss)
    network, (batch,) = case.build()
    step = reference_step(network, cross_entropy, batch)
    module, _ = fit(network, case.loss, [batch], PSPCallback(lam=step.balanced_lam()))
    assert_equal_gradients(module.gradients[0], step.gradients(step.balanced_lam()), 1e-8)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@KINDS
def test_validation(reentrant):
    network, _ = checkpoint_cases(reentrant)["styles"].build()

    class Validated(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def validation_step(self, batch: Any, batch_index: int) -> None:
            self.network(batch[0])

    callback = PSPCallback()
    trainer = quiet_trainer(callback)
    trainer.validate(Validated(), loader(1), verbose=False)

    assert "psp_z2_val/network.2.part.layers.6" in trainer.callback_metrics
    assert originals_are_back()
