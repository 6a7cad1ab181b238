"""Histograms of weights and potentials."""

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_psp import PSPCallback
from tests.support.small import BATCH, LAYERS, Classifier, loader, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


def test_histograms_of_weights_and_potentials(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(tmp_path)
    quiet_trainer(PSPCallback(histograms=True), logger=logger, max_epochs=2, log_every_n_steps=1).fit(
        Classifier(), loader()
    )
    events = event_accumulator.EventAccumulator(logger.log_dir, size_guidance={"histograms": 0})
    events.Reload()
    tags = events.Tags()["histograms"]
    assert {f"psp_potentials/{layer}" for layer in LAYERS} <= set(tags)
    assert {f"psp_weights/{layer}.weight" for layer in LAYERS} <= set(tags)
    assert len(events.Histograms("psp_potentials/first")) == 2


class Twice(Classifier):
    """Calls the network twice a step; what it returns enters a nonlinearity."""

    def training_step(self, batch, batch_index):
        features, _ = batch
        return (torch.sigmoid(self(features)) - torch.sigmoid(self(features + 1))).square().mean()


@pytest.mark.parametrize("output", [True, False])
def test_histograms_have_all_passes_of_the_layers_asked_for(output, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(tmp_path)
    quiet_trainer(PSPCallback(histograms=True, output=output), logger=logger).fit(Twice(), loader(1))
    events = event_accumulator.EventAccumulator(logger.log_dir, size_guidance={"histograms": 0})
    events.Reload()
    found = {
        tag.partition("/")[2]: events.Histograms(tag)[0].histogram_value.num for tag in events.Tags()["histograms"]
    }
    values = {layer: found[layer] for layer in LAYERS if layer in found}
    hidden = {"first": 2 * BATCH * 8, "second": 2 * BATCH * 8}
    assert values == ({**hidden, "third": 2 * BATCH * 3} if output else hidden)


def test_histograms_without_tensorboard_are_warned_about():
    with pytest.warns(UserWarning, match="TensorBoardLogger"):
        quiet_trainer(PSPCallback(histograms=True)).fit(Classifier(), loader())
