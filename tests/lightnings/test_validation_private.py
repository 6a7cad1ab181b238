"""Each private name of Lightning's validation loop is taken away: a fit with LobsterPruning does not start."""

import pytest

from lightning_psp.lightnings import validation_private as private
from lightning_psp.pruning import LobsterPruning
from tests.support.either_lightning import NAMES, classifier_of, loader, quiet_trainer


class Lacking:
    """Another object without one of its attributes."""

    def __init__(self, whole, name):
        vars(self).update(_whole=whole, _name=name)

    def __setattr__(self, name, value):
        setattr(self._whole, name, value)

    def __getattr__(self, name):
        if name == self._name:
            raise AttributeError(name)
        return getattr(self._whole, name)


def trainer_without(package, name):
    trainer = quiet_trainer(package, LobsterPruning())
    epoch_loop = trainer.fit_loop.epoch_loop
    epoch_loop.val_loop = Lacking(epoch_loop.val_loop, name)
    return trainer


@pytest.mark.parametrize("package", NAMES)
def test_all_names_are_there(package):
    pytest.importorskip(package)
    assert private.missing_names(quiet_trainer(package)) == []


@pytest.mark.parametrize("name", private.OF_LOOP)
def test_a_missing_name_is_named_before_anything_is_trained(name):
    package = "lightning.pytorch"
    pytest.importorskip(package)
    trainer, module = trainer_without(package, name), classifier_of(package)()
    with pytest.raises(NotImplementedError, match=rf"no _EvaluationLoop\.{name}\. Use a version"):
        trainer.fit(module, loader(), loader())
    assert not module.gradients


def test_without_a_loop_it_is_the_trainers_name(monkeypatch):
    pytest.importorskip("lightning.pytorch")
    trainer = quiet_trainer("lightning.pytorch")
    monkeypatch.delattr(trainer.fit_loop.epoch_loop, "val_loop")
    assert private.missing_names(trainer) == [f"Trainer.{private.LOOP}"]
