"""What Weights & Biases and MLflow are given, offline: wandb 0.31.0 and mlflow-skinny 3.17.2 over SQLAlchemy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_psp import PSPCallback
from tests.support.pages import Page

pytestmark = [
    pytest.mark.libraries,
    pytest.mark.filterwarnings("ignore"),  # of these libraries, and of Lightning about their settings
]
PAGE = Page(Path(__file__).parents[3] / "docs" / "howto" / "log.md")
EPOCHS, STEPS = 2, 3


class Sums(LightningModule):
    """Two layers named after modules and two after a place: ``relu`` and ``relu:1``."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.last = nn.Linear(8, 3)

    def loss(self, batch):
        hidden = torch.relu(self.first(batch[0]))
        hidden = torch.relu(torch.relu(hidden + 1) - 1)
        return functional.cross_entropy(self.last(hidden), batch[1])

    def training_step(self, batch, batch_index):
        return self.loss(batch)

    def validation_step(self, batch, batch_index):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(logger):
    """What a training leaves in ``callback_metrics``."""
    torch.manual_seed(0)
    data = DataLoader(TensorDataset(torch.randn(60, 6), torch.arange(60) % 3), batch_size=60 // STEPS)
    trainer = Trainer(
        max_epochs=EPOCHS,
        callbacks=[PSPCallback(lam=0.01)],
        logger=logger,
        log_every_n_steps=1,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Sums(), data, data)
    found = {key: value.item() for key, value in trainer.callback_metrics.items()}
    assert {"psp/penalty_share", "psp/z2_val", "psp_z2_train/relu:1", "psp_entropy_val/first"} <= set(found)
    return found


def test_weights_and_biases(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    logger = WandbLogger(project="test", offline=True)
    expected = fit(logger)
    summary = dict(logger.experiment.summary)
    logger.experiment.finish()
    assert {key: summary.get(key) for key in expected} == pytest.approx(expected)
    assert list(tmp_path.rglob("*.wandb"))


def test_mlflow(tmp_path):
    pytest.importorskip("mlflow")
    logger = MLFlowLogger("test", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    expected = {key.replace(":", ""): value for key, value in fit(logger).items()}
    history = {key: logger.experiment.get_metric_history(logger.run_id, key) for key in expected}
    assert {key: values[-1].value for key, values in history.items()} == pytest.approx(expected)
    per_step = {"psp/lam", "psp/penalty", "psp/penalty_share", "psp/z2"}
    lengths = {key: EPOCHS * STEPS if key in per_step else EPOCHS for key in expected}
    assert {key: len(values) for key, values in history.items()} == lengths


def test_the_page_on_logging(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    pytest.importorskip("tensorboard")
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for block in PAGE.blocks:
        PAGE.run(namespace, *block)
    assert {"curves.png", "mlflow.db", "tensorboard", "wandb"} <= {path.name for path in tmp_path.iterdir()}
