"""Training under given masks: what it logs, what it refuses, and its place on a command line."""

import copy
import sys
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningCLI
from torch import nn

from lightning_psp.pruning import LobsterPruning, MaskedTraining, sparsity
from tests.support.pruning.networks import NETWORKS, effective_weights
from tests.support.pruning.training import (
    Pruned,
    assert_held,
    assert_state,
    fit,
    hooks,
    lenet300,
    loader_for,
    masks_for,
)


def test_logged_values():
    module = lenet300()
    trainer = fit(module, MaskedTraining(module.masks))
    expected = sparsity(module.masks)
    logged = {name: value.item() for name, value in trainer.callback_metrics.items() if "pruning" in name}
    names = {f"pruning_sparsity/{name}": share for name, share in expected.layers.items()}
    assert logged == pytest.approx({"pruning/sparsity": expected.network, **names}, rel=1e-6)
    assert "pruning/sparsity" not in trainer.progress_bar_metrics


def test_barebones():
    module = lenet300()
    module.log = lambda *_, **__: None
    fit(module, MaskedTraining(module.masks), barebones=True, enable_checkpointing=None, logger=None)
    assert_held(module, ("training step", "at the end"))


# --- refused ---------------------------------------------------------------------------------------------------------

MASK = torch.ones(2, 2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"masks": {}}, ValueError, "at least one mask but got none"),
        ({"masks": None}, TypeError, "`masks` to map parameter names to bool tensors but got NoneType"),
        ({"masks": {"weight": MASK.float()}}, TypeError, "bool tensors but got torch.float32 for 'weight'"),
        ({"masks": "missing.pt"}, ValueError, "`masks` to be the path of a file but got 'missing.pt'"),
        ({"rewind_to": "Random"}, ValueError, "`rewind_to` to be 'random' or the path of a file but got 'Random'"),
        ({"rewind_to": 3}, TypeError, "None, 'random', a state dict or a path but got int."),
        ({"rewind_to": nn.Linear(2, 2)}, TypeError, "but got Linear. Give a copy of its `state_dict()`."),
        ({"rewind_to": "random"}, ValueError, "`seed` to be an integer for rewind_to='random' but got None"),
        ({"rewind_to": "random", "seed": 0.5}, TypeError, "`seed` to be an integer but got 0.5"),
        ({"seed": 1}, ValueError, "`seed` with rewind_to='random' alone but got seed=1"),
        ({"rewind_to": {}, "seed": 1}, ValueError, "`seed` with rewind_to='random' alone but got seed=1"),
    ],
)
def test_arguments(arguments, error, message):
    with pytest.raises(error) as raised:
        MaskedTraining(**{"masks": {"weight": MASK}, **arguments})
    assert message in str(raised.value)


INNER = (
    r"weight, …; Pruned lacks fc1.weight, fc1.bias, fc2.weight, …. Give that of the whole Pruned, not of a part of it"
)
FAULTS = {
    "name of a mask": (
        {"fc1.weight": MASK},
        {},
        "to name parameters of Pruned but got 'fc1.weight'. It has network.fc1.weight: make masks of the whole Pruned",
    ),
    "mask of another network": (
        {"fc9.weight": MASK},
        {},
        "of Pruned but got 'fc9.weight'. Its parameters are: network.",
    ),
    "shape of a mask": ({"network.fc1.weight": MASK}, {}, r"the parameter's shape \(300, 784\) but got \(2, 2\)"),
    "lacks": (None, {"rewind_to": {}}, "state dict of Pruned, but it lacks network.fc1.weight, network.fc1.bias"),
    "inner": (None, {"rewind_to": NETWORKS["lenet300"]().state_dict()}, INNER),
    "shape": (
        None,
        {"rewind_to": Pruned(NETWORKS["lenet300"](pixels=9)).state_dict()},
        r"but network.fc1.weight has shape \(300, 9\), not \(300, 784\)",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_does_not_fit_the_module(name):
    """An error before anything is changed."""
    masks, arguments, message = FAULTS[name]
    module = lenet300()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=message):
        fit(module, MaskedTraining(masks or module.masks, **arguments))
    assert_state(module.state_dict(), before)
    assert hooks() == (0, 0)


def test_a_file_that_holds_something_else(tmp_path):
    path = tmp_path / "numbers.pt"
    torch.save([1, 2], path)
    with pytest.raises(TypeError, match="but got list"):
        MaskedTraining(path)
    with pytest.raises(ValueError, match=r"numbers.pt' to hold a state dict or a checkpoint but got something else"):
        fit(lenet300(), MaskedTraining(lenet300().masks, rewind_to=path))


@pytest.mark.parametrize("text", ["", "a text", "hello\n", "(1, 2)", "epoch,step\n1,2\n"])
def test_a_file_that_is_none_of_torch(text, tmp_path):
    path = tmp_path / "text.pt"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"`masks` to be the path of a file of .* but got '.*text\.pt', which is no"):
        MaskedTraining(path)
    with pytest.raises(ValueError, match=r"text\.pt' holds objects beside tensors, .* or is no torch file"):
        fit(lenet300(), MaskedTraining(lenet300().masks, rewind_to=path))


def test_a_second_callback_that_holds_masks():
    """Both would log shares under the same names."""
    module = lenet300()
    both = [LobsterPruning(), MaskedTraining(module.masks)]
    for callbacks in (both, both[::-1]):
        with pytest.raises(ValueError, match=r"one callback that holds masks but got (Lob|Mask)\w+ and (Lob|Mask)"):
            fit(module, *callbacks)
    assert hooks() == (0, 0)


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy"])
@pytest.mark.parametrize("is_derived", [False, True])
def test_sharded_weights_are_refused(name, is_derived):
    strategy = type(name, (), {})
    strategy = type("Own", (strategy,), {}) if is_derived else strategy
    message = rf"MaskedTraining cannot keep weights at 0 that {strategy.__name__} shards .* DDPStrategy\(\)"
    with pytest.raises(NotImplementedError, match=message):
        MaskedTraining({"weight": MASK}).setup(SimpleNamespace(strategy=strategy()), None, "fit")


# --- LightningCLI ----------------------------------------------------------------------------------------------------

CONFIGURATION = """
trainer:
  max_epochs: 1
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning_psp.pruning.MaskedTraining
      init_args: {masks: MASKS, ARGUMENTS}
"""


class LeNet300(Pruned):
    def __init__(self):
        super().__init__(NETWORKS["lenet300"]())
        masks_for(self)


class Data(LightningDataModule):
    def train_dataloader(self):
        return loader_for(NETWORKS["lenet300"]())

    def val_dataloader(self):
        return loader_for(NETWORKS["lenet300"](), 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["random", "path", "none"])
def test_configuration_of_a_command_line(kind, tmp_path, monkeypatch):
    pytest.importorskip("jsonargparse")
    monkeypatch.setattr(sys, "argv", ["train.py"])
    module = lenet300()
    torch.save(module.masks, tmp_path / "masks.pt")
    torch.save(module.state_dict(), tmp_path / "initial.pt")
    arguments = {
        "random": "rewind_to: random, seed: 3",
        "path": f"rewind_to: {tmp_path / 'initial.pt'}",
        "none": "rewind_to: null",
    }[kind]
    text = CONFIGURATION.replace("MASKS", str(tmp_path / "masks.pt")).replace("ARGUMENTS", arguments)
    path = tmp_path / "configuration.yaml"
    path.write_text(text)
    settings = {"save_config_callback": None, "seed_everything_default": 0}
    cli = LightningCLI(LeNet300, Data, args=["fit", "--config", str(path)], **settings)
    (callback,) = (each for each in cli.trainer.callbacks if isinstance(each, MaskedTraining))
    assert_state(callback.masks, module.masks)
    assert str(callback.rewind_to) == {"path": str(tmp_path / "initial.pt"), "none": "None"}.get(kind, kind)
    assert callback.seed == (3 if kind == "random" else None)
    for name, weight in effective_weights(cli.model).items():
        assert (weight[~module.masks[name]] == 0).all()
