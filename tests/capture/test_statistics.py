"""Evaluations that log numbers made of hidden layers and compute no loss: the output layer is the one of training."""

import pytest
import torch

from lightning_psp import PSPCallback, layer_summary, record_potentials
from tests.support.small import LAYERS, Classifier, loader, quiet_trainer


class Unscored(Classifier):
    """Looks at a hidden layer in its validation, in a way that the subclass says."""

    def forward(self, features):
        self.hidden = self.first(features)
        return self.third(self.relu(self.second(torch.nn.functional.silu(self.hidden))))

    def validation_step(self, batch, batch_index):
        logits = self.look(batch[0])
        self.log("error", (logits.argmax(1) != batch[1]).double().mean())


class Logged(Unscored):
    def look(self, features):
        logits = self(features)
        self.log("statistic", self.hidden.square().mean())
        return logits


class Recorded(Unscored):
    def look(self, features):
        with record_potentials(self) as potentials:
            logits = self(features)
        self.log("statistic", potentials["first"].square().mean())
        return logits


class Summarised(Unscored):
    def look(self, features):
        self.log("layers", float(len(list(layer_summary(self, features)))))
        return self(features)


@pytest.mark.parametrize("kind", [Logged, Recorded, Summarised])
def test_a_statistic_is_no_loss(kind):
    trainer = quiet_trainer(PSPCallback(), max_epochs=1)
    trainer.fit(kind().double(), loader(), loader(1))
    assert {f"psp_z2_val/{layer}" for layer in LAYERS} <= trainer.callback_metrics.keys()
    assert {"psp_entropy_val/first", "psp_entropy_val/second"} <= trainer.callback_metrics.keys()
    assert "psp_entropy_val/third" not in trainer.callback_metrics
