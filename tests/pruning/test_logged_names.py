"""The monitored value has to be the LightningModule's own: callbacks take no part in the validations of a search."""

import pytest
from lightning.pytorch import Callback
from torch.nn import functional

from lightning_psp import PSPCallback
from lightning_psp.lightnings import validation_private
from lightning_psp.pruning import LobsterPruning
from tests.support.pruning.lobster import AT_ONCE, Model, data, train
from tests.support.small import quiet_trainer

HOOKS = (
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
)
MESSAGE = r"monitor='by_callback.*the LightningModule itself, and no callback, logs.*names are: val_loss"


def logs_in(hook, name="by_callback", kind=Callback, **settings):
    """A callback, or a LightningModule, that logs a value in a hook."""

    def log(self, *arguments):
        getattr(super(logging, self), hook)(*arguments)
        (arguments[1] if kind is Callback else self).log(name, 1.0, on_epoch=True, **settings)

    logging = type("Logging", (kind,), {hook: log})
    return logging()


@pytest.mark.parametrize("hook", HOOKS)
def test_a_monitor_that_only_a_callback_logs_is_an_error_in_the_first_validation(hook):
    with pytest.raises(ValueError, match=MESSAGE + r"\."):
        train(LobsterPruning(monitor="by_callback"), logs_in(hook), module=(module := Model()))
    assert len(module.validated) == 1


@pytest.mark.parametrize("hook", ["on_validation_batch_end", "on_validation_epoch_end"])
def test_that_the_module_logs_others_in_the_same_hook_does_not_hide_it(hook):
    module = logs_in(hook, "others", Model)
    with pytest.raises(ValueError, match=MESSAGE + ", others|names are: others, val_loss"):
        train(LobsterPruning(monitor="by_callback"), logs_in(hook), module=module)
    assert len(module.validated) == 1


@pytest.mark.parametrize("hook", ["on_validation_batch_end", "on_validation_epoch_end"])
def test_what_the_module_logs_in_hooks_is_its_own(hook):
    pruning, module = LobsterPruning(monitor="by_module", patience=20), logs_in(hook, "by_module", Model)
    train(pruning, logs_in(hook), module=module, epochs=3)
    assert len(module.validated) == 3


def test_what_both_log_is_the_modules():
    train(LobsterPruning(), logs_in("on_validation_epoch_end", "val_loss"), module=(module := Model()), epochs=2)
    assert len(module.validated) == 2


def test_what_this_package_logs():
    with pytest.raises(ValueError, match=r"monitor='psp/z2_val'.*names are: val_loss\."):
        train(LobsterPruning(monitor="psp/z2_val"), PSPCallback(), module=(module := Model()))
    assert len(module.validated) == 1


class OfTwo(Model):
    def validation_step(self, batch, batch_index, dataloader_idx=0):
        loss = functional.cross_entropy(self(batch[0]), batch[1])
        self.log("val_loss", loss)
        self.log("both", loss, add_dataloader_idx=False) if dataloader_idx == 0 else None

    def on_validation_batch_end(self, *arguments):
        self.log("in_hook", 1.0)


@pytest.mark.parametrize(
    ("monitor", "is_own"),
    [
        ("val_loss/dataloader_idx_0", True),
        ("val_loss/dataloader_idx_1", True),
        ("in_hook/dataloader_idx_1", True),
        ("both", True),
        ("by_callback/dataloader_idx_1", False),
    ],
)
def test_several_dataloaders(monitor, is_own):
    module = OfTwo()
    callbacks = LobsterPruning(monitor=monitor), logs_in("on_validation_batch_end")
    trainer = quiet_trainer(*callbacks, max_epochs=2)
    loaders = [data(64, seed=1), data(64, seed=2)]
    if is_own:
        trainer.fit(module, data(), loaders)
        assert len(module.validated) == 2
    else:
        with pytest.raises(ValueError, match=MESSAGE):
            trainer.fit(module, data(), loaders)
        assert len(module.validated) == 1


@pytest.mark.parametrize("name", ["RESULTS", "NAME_OF_RESULT"])
def test_without_the_private_name_it_is_an_error_at_the_first_plateau(name, monkeypatch):
    monkeypatch.setattr(validation_private, name, "_gone")
    with pytest.raises(ValueError, match=MESSAGE + r"\."):
        train(LobsterPruning(**AT_ONCE, monitor="by_callback"), logs_in("on_validation_epoch_end"))
