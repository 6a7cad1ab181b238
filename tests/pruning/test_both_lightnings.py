"""Training under masks with `lightning.pytorch` and with the package `pytorch_lightning`."""

import importlib
from types import SimpleNamespace

import pytest
import torch

from lightning_psp.pruning import MaskedTraining, magnitude_masks
from tests.support.either_lightning import NAMES, classifier_of, loader, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
OTHER = dict(zip(NAMES, reversed(NAMES), strict=True))


@pytest.fixture(params=NAMES)
def name(request):
    """The package that a test uses."""
    pytest.importorskip(request.param)
    return request.param


def train(name, start, masks, folder, checkpoint=None, **arguments):
    class Looking(classifier_of(name)):
        def look(self):
            assert not any(self.get_parameter(key)[~mask].any() for key, mask in masks.items())

        def validation_step(self, batch, batch_index):
            self.look()
            super().validation_step(batch, batch_index)

        def on_train_batch_end(self, *_):
            self.look()

    torch.manual_seed(start)
    module = Looking().double()
    saving = importlib.import_module(f"{name}.callbacks").ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    callback = MaskedTraining(masks, **arguments)
    trainer = quiet_trainer(name, callback, saving, max_epochs=2, enable_checkpointing=True)
    trainer.fit(module, loader(), loader(1), ckpt_path=checkpoint)
    assert isinstance(callback, importlib.import_module(name).Callback)
    return module.state_dict(), trainer


@pytest.mark.parametrize("resumed_in_other", [False, True])
def test_a_training_and_one_that_goes_on(name, resumed_in_other, tmp_path):
    second = OTHER[name] if resumed_in_other else name
    pytest.importorskip(second)
    torch.manual_seed(0)
    masks = magnitude_masks(classifier_of(name)(), sparsity=0.5)
    arguments = {"rewind_to": "random", "seed": 3}
    weights, trainer = train(name, 0, masks, tmp_path, **arguments)
    assert trainer.callback_metrics["pruning/sparsity"] == pytest.approx(0.5, abs=0.01)
    assert {f"pruning_sparsity/{key}" for key in masks} <= set(trainer.callback_metrics)
    resumed, _ = train(second, 1, masks, tmp_path, tmp_path / "epoch=0.ckpt", **arguments)
    assert all(torch.equal(weights[key], resumed[key]) for key in weights)
    assert not any(weights[key][~mask].any() for key, mask in masks.items())


def test_a_module_of_the_other_is_an_error(name):
    pytest.importorskip(OTHER[name])
    module = classifier_of(OTHER[name])()
    callback = MaskedTraining(magnitude_masks(module, sparsity=0.5))
    with pytest.raises(TypeError, match="Import both from the same package"):
        callback.setup(quiet_trainer(name), module, "fit")


@pytest.mark.parametrize("kind", ["FSDPStrategy", "DeepSpeedStrategy"])
def test_sharded_weights_are_refused(name, kind):
    """By the strategies' own classes, without what they need to be made."""
    strategy = object.__new__(getattr(importlib.import_module(f"{name}.strategies"), kind))
    with pytest.raises(NotImplementedError, match=rf"that {kind} shards over processes. Use DDPStrategy\(\)"):
        MaskedTraining({"weight": torch.ones(1, dtype=torch.bool)}).setup(
            SimpleNamespace(strategy=strategy), classifier_of(name)(), "fit"
        )
