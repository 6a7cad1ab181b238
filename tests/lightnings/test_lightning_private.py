"""Names that a version of Lightning may lack: the same steps, and the same rows of the same numbers."""

import pytest
import torch
from lightning.pytorch import Callback

from lightning_psp import PSPCallback
from lightning_psp.lightnings import lightning_private
from tests.support.rows import ByHand, Rows
from tests.support.small import Classifier, loader, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
NAMES = ["BATCHES_THAT_STEPPED", "SHOULD_ACCUMULATE", "CONNECTOR", "WRITE", "CALLBACK_VALUES"]


class Asks(Callback):
    """Keeps what the functions tell at the end of each batch, and the callback's values then."""

    def __init__(self):
        self.told, self.values = [], []

    def on_train_batch_end(self, trainer, *args):
        accumulates = lightning_private.accumulates(trainer)
        number = None if accumulates else lightning_private.number_of_row(trainer)
        self.values.append({key: float(trainer.callback_metrics[key]) for key in ("psp/lam", "psp/z2")})
        self.told.append((accumulates, number, lightning_private.row_writer(trainer) is None))


def fit(kind, **settings):
    """The rows with the penalty's values, and what was told in each batch, with the callback's values then."""
    torch.manual_seed(0)
    rows, asks, module = Rows(), Asks(), kind()
    trainer = quiet_trainer(PSPCallback(), asks, logger=rows, max_epochs=2, **{"log_every_n_steps": 2, **settings})
    trainer.fit(module.double(), loader(5))
    found = [{key: row[key] for key in ("psp/lam", "psp/z2", "epoch", "step")} for row in rows.of_steps()]
    return found, asks.told, asks.values


def test_this_version_has_all_names():
    """Else public names are the only ones, and what follows tests nothing."""
    _, told, _ = fit(Classifier)
    assert not any(without_writer for *_, without_writer in told)
    trainer = quiet_trainer()
    assert hasattr(trainer.fit_loop.epoch_loop, lightning_private.BATCHES_THAT_STEPPED)
    assert hasattr(trainer.fit_loop, lightning_private.SHOULD_ACCUMULATE)
    connector = getattr(trainer, lightning_private.CONNECTOR)
    assert getattr(connector, lightning_private.CALLBACK_VALUES) is trainer.callback_metrics


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2}, {"accumulate_grad_batches": 3}])
def test_rows_without_a_name_are_those_with_it(monkeypatch, name, settings):
    rows, told, values = fit(Classifier, **settings)
    monkeypatch.setattr(lightning_private, name, "_no_such_name")
    found, told_without, values_without = fit(Classifier, **settings)
    assert found == rows
    assert values_without == values
    assert [entry[:2] for entry in told_without] == [entry[:2] for entry in told]
    assert all(entry[2] == (name in ("CONNECTOR", "WRITE")) for entry in told_without)
    assert len(rows) >= 2


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_manual_optimisation_without_a_name_are_those_with_it(monkeypatch, name):
    rows, _, values = fit(ByHand)
    monkeypatch.setattr(lightning_private, name, "_no_such_name")
    found, _, values_without = fit(ByHand)
    assert found == rows
    assert values_without == values
    assert len(rows) == 5
