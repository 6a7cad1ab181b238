"""Names that a version of Lightning may lack: the same steps, and the same rows of the same numbers."""

import pytest
import torch
from lightning.pytorch import Callback

from lightning_psp import PSPCallback
from lightning_psp.lightnings import lightning_private
from tests.support.rows import ByHand, Rows
from tests.support.small import Classifier, loader, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
NAMES = ["BATCHES_THAT_STEPPED", "SHOULD_ACCUMULATE", "CONNECTOR", "WRITE"]


class Asks(Callback):
    """Keeps what the functions tell at the end of each batch."""

    def __init__(self):
        self.told = []

    def on_train_batch_end(self, trainer, *args):
        accumulates = lightning_private.accumulates(trainer)
        number = None if accumulates else lightning_private.number_of_row(trainer)
        self.told.append((accumulates, number, lightning_private.row_writer(trainer) is None))


def fit(kind, **settings):
    """The rows with the penalty's values, and what was told in each batch."""
    torch.manual_seed(0)
    rows, asks, module = Rows(), Asks(), kind()
    trainer = quiet_trainer(PSPCallback(), asks, logger=rows, max_epochs=2, **{"log_every_n_steps": 2, **settings})
    trainer.fit(module.double(), loader(5))
    return [{key: row[key] for key in ("psp/lam", "psp/z2", "epoch", "step")} for row in rows.of_steps()], asks.told


def test_this_version_has_all_names():
    """Else public names are the only ones, and what follows tests nothing."""
    _, told = fit(Classifier)
    assert not any(without_writer for *_, without_writer in told)
    trainer = quiet_trainer()
    assert hasattr(trainer.fit_loop.epoch_loop, lightning_private.BATCHES_THAT_STEPPED)
    assert hasattr(trainer.fit_loop, lightning_private.SHOULD_ACCUMULATE)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2}, {"accumulate_grad_batches": 3}])
def test_rows_without_a_name_are_those_with_it(monkeypatch, name, settings):
    rows, told = fit(Classifier, **settings)
    monkeypatch.setattr(lightning_private, name, "_no_such_name")
    found, told_without = fit(Classifier, **settings)
    assert found == rows
    assert [entry[:2] for entry in told_without] == [entry[:2] for entry in told]
    assert all(entry[2] == (name in ("CONNECTOR", "WRITE")) for entry in told_without)
    assert len(rows) >= 2


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_manual_optimisation_without_a_name_are_those_with_it(monkeypatch, name):
    rows, _ = fit(ByHand)
    monkeypatch.setattr(lightning_private, name, "_no_such_name")
    found, _ = fit(ByHand)
    assert found == rows
    assert len(rows) == 5
