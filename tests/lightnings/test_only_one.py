"""Two callbacks of a kind in one trainer are refused with a remedy, under either Lightning."""

import importlib

import pytest
import torch

from lightning_psp import PSPCallback
from lightning_psp.pruning import LobsterPruning, MaskedTraining, magnitude_masks
from tests.support.either_lightning import NAMES, classifier_of, loader, quiet_trainer


def psp(module):
    return PSPCallback()


def lobster(module):
    return LobsterPruning()


def masked(module):
    return MaskedTraining(magnitude_masks(module, sparsity=0.5))


REFUSALS = {
    psp: (RuntimeError, "`layer_lam` gives layers"),
    **dict.fromkeys((lobster, masked), (ValueError, "in two fits")),
}


@pytest.fixture(params=NAMES)
def name(request):
    """The package that a test uses."""
    pytest.importorskip(request.param)
    return request.param


@pytest.mark.parametrize("make", REFUSALS)
def test_a_second_one_is_refused_with_the_remedy(name, make):
    module = classifier_of(name)().double()
    trainer = quiet_trainer(name, make(module), make(module))
    error, remedy = REFUSALS[make]
    with pytest.raises(error, match="A Trainer takes one") as raised:
        trainer.fit(module, loader(), loader(1))
    assert remedy in str(raised.value)
    assert module.gradients == []


@pytest.mark.parametrize("is_first", [False, True])
def test_one_of_a_derived_class_beside_it_is_refused(is_first):
    class Derived(PSPCallback):
        pass

    pytest.importorskip(NAMES[0])
    module = classifier_of(NAMES[0])().double()
    callbacks = [Derived(), PSPCallback()] if is_first else [PSPCallback(), Derived()]
    with pytest.raises(RuntimeError, match="A Trainer takes one PSPCallback"):
        quiet_trainer(NAMES[0], *callbacks).fit(module, loader(), loader(1))


@pytest.mark.parametrize("call", ["validate", "predict"])
def test_a_second_one_is_refused_without_a_fit(call):
    pytest.importorskip(NAMES[0])
    module = classifier_of(NAMES[0])().double()
    with pytest.raises(RuntimeError, match="A Trainer takes one PSPCallback"):
        getattr(quiet_trainer(NAMES[0], PSPCallback(), PSPCallback()), call)(module, loader(1))


def test_the_same_one_twice_is_refused_by_the_trainer(name):
    callback = PSPCallback()
    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        quiet_trainer(name, callback, callback)


@pytest.mark.parametrize("make", REFUSALS)
def test_the_key_in_checkpoints_is_the_name_of_the_class(name, make, tmp_path):
    module = classifier_of(name)().double()
    callback = make(module)
    expected = type(callback).__name__
    assert callback.state_key != expected
    saving = importlib.import_module(f"{name}.callbacks").ModelCheckpoint(tmp_path, filename="{epoch}")
    quiet_trainer(name, callback, saving, enable_checkpointing=True).fit(module, loader(), loader(1))
    assert callback.state_key == expected
    assert expected in torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)["callbacks"]
