"""A training by `LightningCLI`, as a configuration in YAML asks for it, under either Lightning."""

from __future__ import annotations

import importlib
import sys
import textwrap
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch.utils.data import DataLoader

TRAINER = """
seed_everything: 0
trainer:
  max_epochs: {epochs}
  accelerator: cpu
  precision: 64-true
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  callbacks:
    -
"""


def train_by_configuration(
    name: str,
    module: type,
    loaders: tuple[DataLoader[Any], DataLoader[Any]],
    callback: str,
    folder: Path,
    epochs: int = 1,
) -> tuple[Any, Any]:
    """Fits a module under a callback.

    Args:
        name: the package of Lightning.
        module: the module's class.
        loaders: of training and validation.
        callback: its `class_path` and `init_args` in YAML.
        folder: a folder for the configuration.
        epochs: how many to train.

    Returns:
        The trainer, and the callback that it had.
    """
    training, validation = loaders
    package = importlib.import_module(name)

    class Data(package.LightningDataModule):
        def train_dataloader(self) -> DataLoader[Any]:
            return training

        def val_dataloader(self) -> DataLoader[Any]:
            return validation

    path = folder / "configuration.yaml"
    path.write_text(TRAINER.format(epochs=epochs) + textwrap.indent(textwrap.dedent(callback), 6 * " "))
    make = importlib.import_module(f"{name}.cli").LightningCLI
    # It warns where there are arguments besides those that it is given, and pytest may have some.
    with patch.object(sys, "argv", ["train.py"]):
        cli = make(module, Data, args=["fit", "--config", str(path)], save_config_callback=None)
    (found,) = (each for each in cli.trainer.callbacks if type(each).__module__.startswith("lightning_psp."))
    return cli.trainer, found
