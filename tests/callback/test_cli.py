"""The callback in a LightningCLI configuration."""

import pytest
from torch import nn

from lightning_psp.callback.settings import EntropySettings
from lightning_psp.schedules import WarmUp
from tests.support.command_line import train_by_configuration
from tests.support.small import Classifier, loader

pytest.importorskip("jsonargparse")
# Lightning calls what this version of jsonargparse deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CALLBACK = """
class_path: lightning_psp.PSPCallback
init_args:
  lam: 0.01
  schedule:
    class_path: lightning_psp.schedules.WarmUp
    init_args:
      steps: 2
  layer_lam:
    "fir*": 0.5
  include: ["*"]
  exclude: [second]
  output: false
  reduction: sum
  activations: [torch.sin, torch.nn.Softplus]
  entropy: [1, 2]
  entropy_unit: channel
  log_layers: false
  histograms: false
"""


def run(folder, callback):
    return train_by_configuration("lightning.pytorch", Classifier, (loader(), loader(1)), callback, folder)


def test_every_argument_comes_from_yaml(tmp_path):
    trainer, callback = run(tmp_path, CALLBACK)
    assert callback.lam == 0.01
    assert callback.schedule == WarmUp(steps=2)
    assert callback.layer_lam == {"fir*": 0.5}
    assert callback.selection.exclude == ("second",)
    assert not callback.selection.output
    assert callback.reduction == "sum"
    assert len(callback.activations) == 2
    assert nn.Softplus in callback.activations or "torch.nn.Softplus" in callback.activations
    assert "psp/z2_val" in trainer.callback_metrics
    assert {"psp/entropy_val", "psp/entropy2_val"} <= set(trainer.callback_metrics)


def test_a_schedule_by_name(tmp_path):
    start, end = CALLBACK.index("  schedule:"), CALLBACK.index("  layer_lam:")
    _, callback = run(tmp_path, CALLBACK[:start] + "  schedule: cosine\n" + CALLBACK[end:])
    assert type(callback.schedule).__name__ == "Cosine"


def second_item(batch):
    return batch[1]


@pytest.mark.parametrize(
    ("written", "target"), [("null", None), ("1", 1), ("tests.callback.test_cli.second_item", second_item)]
)
def test_the_entropy_term(tmp_path, written, target):
    settings = f"""\
  entropy_weight: -0.05
  entropy_temperature: 0.5
  num_classes: 3
  target: {written}
"""
    trainer, callback = run(tmp_path, CALLBACK + settings)
    assert callback.entropy_term == EntropySettings(-0.05, 0.5, target, 3, "channel")
    assert -0.05 * 3 < trainer.callback_metrics["psp/entropy_term"] < 0


def test_the_key_of_the_labels(tmp_path):
    without_entropy = CALLBACK.replace("entropy: [1, 2]", "entropy: []")
    _, callback = run(tmp_path, without_entropy + "  target: labels\n")
    assert callback.entropy_term.target == "labels"


def test_lam_is_auto_by_name(tmp_path):
    trainer, callback = run(tmp_path, CALLBACK.replace("lam: 0.01", "lam: auto"))
    assert callback.lam == "auto"
    assert trainer.callback_metrics["psp/lam"] > 0


def test_entropy_is_auto_by_name(tmp_path):
    trainer, _ = run(tmp_path, CALLBACK.replace("entropy: [1, 2]", "entropy: auto"))
    assert "psp/entropy_val" in trainer.callback_metrics
    assert "psp/entropy2_val" not in trainer.callback_metrics
