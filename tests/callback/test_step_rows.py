"""The values of a step reach every logger in the row in which Lightning writes its own, with the epoch."""

import csv
import itertools

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector
from torch.nn import functional

from lightning_psp import PSPCallback
from tests.support.rows import ByHand, Rows
from tests.support.small import Classifier, loader, quiet_trainer

STEP = {"psp/lam", "psp/penalty", "psp/penalty_share", "psp/z2"}

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


class Values(Callback):
    """Keeps the callback metrics after every step."""

    def __init__(self):
        self.rows = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.rows.append({key: float(value) for key, value in trainer.callback_metrics.items()})


class Unlogged(Classifier):
    def training_step(self, batch, batch_index):
        return functional.cross_entropy(self(batch[0]), batch[1])


def fit(module, *callbacks, batches=6, **settings):
    logger, values = Rows(), Values()
    trainer = quiet_trainer(*callbacks, values, **{"logger": logger, "log_every_n_steps": 2, **settings})
    trainer.fit(module, loader(batches), *([loader(1)] if "val_check_interval" in settings else []))
    return trainer, logger, values.rows


@pytest.mark.parametrize(("kind", "window"), [(Classifier, 1), (Classifier, 2), (ByHand, 1)])
def test_values_are_in_lightnings_row(kind, window):
    _, logger, values = fit(kind(), PSPCallback(), max_epochs=2, accumulate_grad_batches=window, log_every_n_steps=1)
    rows = logger.of_steps()
    assert len(rows) == 12 / window
    for index, row in enumerate(rows):
        batch = (index + 1) * window - 1
        assert set(row) == {*STEP, "loss", "epoch", "step"}
        assert (row["epoch"], row["step"]) == (batch // 6, index)
        assert {key: row[key] for key in STEP} == {key: values[batch][key] for key in STEP}
        assert all(isinstance(row[key], float) for key in STEP)
    assert [row for row in logger.rows if "loss" in row] == rows


def test_a_network_that_logs_nothing_has_the_row_all_the_same():
    _, logger, _ = fit(Unlogged(), PSPCallback())
    assert [(set(row), row["step"]) for row in logger.of_steps()] == [({*STEP, "epoch", "step"}, n) for n in (1, 3, 5)]


def test_every_logger_gets_one_call_a_step(tmp_path):
    loggers = [Rows(), Rows(), CSVLogger(tmp_path)]
    trainer, _, _ = fit(Classifier(), PSPCallback(), logger=loggers)
    assert [len(each.of_steps()) for each in loggers[:2]] == [3, 3]
    with open(tmp_path / "lightning_logs" / "version_0" / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["psp/lam"]]
    assert len(rows) == 3
    assert all(row[key] for row in rows for key in (*STEP, "loss", "epoch"))
    assert trainer.logged_metrics.keys() >= STEP


def test_the_keys_of_epochs_are_what_they_were():
    trainer, logger, _ = fit(Classifier(), PSPCallback(log_layers=False), max_epochs=2, val_check_interval=3)
    found = set(itertools.chain.from_iterable(logger.rows))
    assert {key for key in found if "psp" in key} == {*STEP, "psp/z2_train", "psp/z2_val", "psp/entropy_val"}
    assert all(not STEP & set(row) for row in logger.rows if "psp/z2_train" in row or "psp/z2_val" in row)
    assert not [key for key in trainer.callback_metrics if key.endswith(("_epoch", "_step"))]


def test_callback_metrics_hold_every_step():
    """Those between two rows, too."""
    _, logger, values = fit(Classifier(), PSPCallback(), log_every_n_steps=3)
    assert len({row["psp/z2"] for row in values}) == 6
    assert [row["psp/z2"] for row in logger.of_steps()] == [values[2]["psp/z2"], values[5]["psp/z2"]]


def test_other_callbacks_monitor_them(tmp_path):
    saving = ModelCheckpoint(tmp_path, monitor="psp/z2", every_n_train_steps=2, save_top_k=-1, filename="{psp/z2:.6f}")
    stopping = EarlyStopping("psp/penalty", check_on_train_epoch_end=True, patience=0, mode="max", min_delta=1e9)
    trainer, _, values = fit(Classifier(), PSPCallback(), saving, stopping, max_epochs=5, enable_checkpointing=True)
    assert trainer.current_epoch == 2
    names = [path.name for path in tmp_path.rglob("*.ckpt")]
    assert len(names) == 6
    assert {f"z2={row['psp/z2']:.6f}.ckpt" for row in values[1::2]} == set(names)


@pytest.mark.parametrize("settings", [{"logger": False}, {"fast_dev_run": 2, "logger": False}])
def test_without_a_logger(settings):
    trainer, _, values = fit(Classifier(), PSPCallback(), **settings)
    assert all(row.keys() >= STEP for row in values)
    assert trainer.logged_metrics.keys() >= STEP


class OwnRow(Callback):
    """Writes a row of its own at the end of a step, as Lightning's ThroughputMonitor does."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer._logger_connector.log_metrics({"own": 1.0}, step=batch_idx)


@pytest.mark.parametrize("order", [1, -1])
def test_rows_of_other_callbacks_stay_their_own(order):
    _, logger, _ = fit(Classifier(), *[PSPCallback(), OwnRow()][::order])
    assert [set(row) for row in logger.rows if "own" in row] == [{"own", "step"}] * 6
    assert [set(row) for row in logger.of_steps()] == [{*STEP, "loss", "epoch", "step"}] * 3


class CrashAtTheEnd(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1:
            raise RuntimeError("crash")


def test_nothing_is_left_on_the_trainer():
    trainer, _, _ = fit(Classifier(), PSPCallback())
    assert "log_metrics" not in vars(trainer._logger_connector)
    logger = Rows()
    trainer = quiet_trainer(PSPCallback(), CrashAtTheEnd(), logger=logger, log_every_n_steps=2)
    with pytest.raises(RuntimeError, match="crash"):
        trainer.fit(Classifier(), loader())
    assert "log_metrics" not in vars(trainer._logger_connector)
    assert [set(row) for row in logger.rows] == [{*STEP, "epoch", "step"}]


def test_a_lightning_that_writes_rows_by_another_name(monkeypatch):
    """The values have rows of their own then: where the name is there but not used, and where it is not there."""

    def write(connector, metrics, step=None):
        for logger in connector.trainer.loggers:
            logger.log_metrics({key: float(value) for key, value in metrics.items()}, step)

    monkeypatch.setattr(_LoggerConnector, "write", write, raising=False)
    monkeypatch.setattr(
        _LoggerConnector, "update_train_step_metrics", lambda connector: connector.write(connector.metrics["log"])
    )
    _, unused, _ = fit(Classifier(), PSPCallback())
    monkeypatch.setattr(_LoggerConnector, "update_train_epoch_metrics", lambda connector: connector.reset_results())
    monkeypatch.delattr(_LoggerConnector, "log_metrics")
    _, missing, values = fit(Classifier(), PSPCallback())
    for logger in (unused, missing):
        rows = logger.of_steps()
        assert [(set(row), row["epoch"], row["step"]) for row in rows] == [
            ({*STEP, "epoch", "step"}, 0, n) for n in (1, 3, 5)
        ]
        assert [row["psp/lam"] for row in rows] == [values[0]["psp/lam"]] * 3
