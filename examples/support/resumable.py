"""Trainings that may be broken off: taken up at the last whole epoch, skipped once done, one JSON file each."""

import json
import logging
import platform
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from tqdm import tqdm

import lightning_psp

PROGRESS_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} epochs, {remaining} left"


class EpochRecorder(Callback):
    """Keeps the values of every epoch, in the checkpoint too, and moves the progress bar.

    Args:
        bar: Progress bar that counts epochs.
    """

    def __init__(self, bar: tqdm) -> None:
        self.bar = bar
        self.epochs: list[dict[str, Any]] = []
        self._start = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the time."""
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning has validated this epoch by now, so its values are in ``callback_metrics``."""
        values = {name: value.item() for name, value in trainer.callback_metrics.items()}
        epoch = {
            "error": round(100 * values["val_error"], 4),
            "loss": values["val_loss"],
            "train_loss": values["train_loss"],
        }
        if "psp/z2_val" in values:
            epoch |= {
                "z2": values["psp/z2_val"],
                "z2_train": values["psp/z2_train"],
                "z2_layers": {
                    name.removeprefix("psp_z2_val/").removeprefix("network."): value
                    for name, value in values.items()
                    if name.startswith("psp_z2_val/")
                },
            }
        self.epochs.append({**epoch, "seconds": round(time.perf_counter() - self._start, 3)})
        self.bar.update()

    def state_dict(self) -> dict[str, Any]:
        """The epochs so far, and the random numbers to come: shuffling and dropout go on as if never broken off."""
        generators = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
        return {"epochs": self.epochs, "generators": generators}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a training where a checkpoint left it.

        Some versions of Lightning before 2.6 draw a random number too many on their way to the next epoch, and shuffle
        otherwise than in a training that was not broken off.
        """
        self.epochs = state_dict["epochs"]
        torch.set_rng_state(state_dict["generators"][0])
        if torch.cuda.is_available():  # a training on a GPU can go on without one
            torch.cuda.set_rng_state_all(state_dict["generators"][1:])
        self.bar.update(len(self.epochs))


def train_once(
    path: Path,
    configuration: Mapping[str, Any],
    make: Callable[[], tuple[LightningModule, LightningDataModule, Sequence[Callback]]],
    *,
    bar: tqdm,
    accelerator: str = "auto",
    measure: Callable[[LightningModule, LightningDataModule], dict[str, Any]] = lambda module, data: {},
) -> dict[str, Any]:
    """Train as ``configuration`` says and write the result, unless ``path`` holds it already.

    The module's validation must log ``val_error`` and ``val_loss``, its training ``train_loss``. After each epoch a
    checkpoint is written to the folder ``checkpoints`` beside ``path``; it is removed with the end of the training.

    Args:
        path: JSON file of the result.
        configuration: What tells this training from others. Its ``seed`` and ``epochs`` are used here; the whole is
            written into the result.
        make: Makes module, data and callbacks; called after seeding.
        bar: Progress bar that counts epochs.
        accelerator: Accelerator of the Trainer.
        measure: Further values of the trained module, for the result.

    Returns:
        The result: ``configuration``, ``versions``, ``epochs`` (one mapping an epoch) and what ``measure`` gave.

    Raises:
        ValueError: If ``path`` or its checkpoint was made with another configuration.
    """
    if path.exists():
        result = json.loads(path.read_text())
        _check_configuration(path, result["configuration"], configuration)
        bar.update(len(result["epochs"]))
        return result

    seed_everything(configuration["seed"], verbose=False)
    module, data, callbacks = make()
    recorder = EpochRecorder(bar)
    folder = path.parent / "checkpoints" / path.stem
    begun, checkpoint = folder / "configuration.json", folder / "last.ckpt"
    if checkpoint.exists():
        _check_configuration(begun, json.loads(begun.read_text()), configuration)
    folder.mkdir(parents=True, exist_ok=True)
    begun.write_text(json.dumps(configuration))
    trainer = Trainer(
        max_epochs=configuration["epochs"],
        callbacks=[
            *callbacks,
            recorder,
            # No epoch is better than another: the last one is kept, to go on from.
            ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False),
        ],
        accelerator=accelerator,
        devices=1,
        logger=False,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, data, ckpt_path=checkpoint if checkpoint.exists() else None)

    result = {
        "configuration": dict(configuration),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "lightning": lightning.__version__,
            "lightning_psp": lightning_psp.__version__,
        },
        "accelerator": type(trainer.accelerator).__name__,
        "epochs": recorder.epochs,
        **measure(module, data),
    }
    write_json(path, result)
    shutil.rmtree(folder)
    return result


def keep_configuration(path: Path, configuration: Mapping[str, Any]) -> None:
    """Write what the results in a folder belong to, where nothing is written yet.

    Args:
        path: JSON file of the configuration.
        configuration: What tells these results from others; of what JSON has.

    Raises:
        ValueError: If the file has another configuration.
    """
    if path.exists():
        _check_configuration(path, json.loads(path.read_text()), configuration, "a study")
    else:
        write_json(path, configuration)


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """Write a line for each entry, all or nothing: a file that is there is whole."""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in result.items())
    unfinished = path.with_suffix(".part")
    unfinished.write_text(f"{{\n{lines}\n}}\n")
    unfinished.replace(path)


def silence_lightning() -> None:
    """Leave the terminal to the progress bar; unexpected warnings still show."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    # Lightning calls what newer versions of torch deprecate.
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.* is deprecated")
    # All sets are tensors in memory: worker processes would only slow the trainings down.
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message="GPU available but not used")
    # A checkpoint's folder is there from the start, for the configuration lies in it.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")


def _check_configuration(
    path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], of: str = "a training"
) -> None:
    if found != wanted:
        raise ValueError(
            f"Expected {path} to be of {of} with {dict(wanted)} but got one with {dict(found)}:"
            " remove it, or name another folder."
        )
