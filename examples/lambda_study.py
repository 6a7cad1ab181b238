"""Is there a setting that serves where one λ does not? λ against shares ρ of the gradient, on eight tasks.

    python examples/lambda_study.py --data FOLDER [--tasks NAME ...] [--seeds N] [--output FOLDER] [--quick]

Four ways to set the strength of PSP, each with the same grid of values:

- λ itself;
- ρ at the start: λ such that the norm of the gradient of λR is ρ times that of the loss's gradient, on the first batch;
- ρ throughout: the same, measured again every 10 steps;
- ρ at the start, layers alike: besides, each layer's part of the penalty has a factor with which its gradient is as
  large as the others'.

For each task the value of least error on a validation set, and for each way the one value that serves all tasks best;
errors on a test set. FOLDER holds MNIST and Fashion-MNIST as torchvision stores them. What is done is skipped when the
script is called again.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from tqdm import tqdm

from lightning_psp import PSPCallback
from support.classifier import evaluate
from support.gradient_share import KeepShare, balanced_layers
from support.lambda_report import WAYS, draw, one_value, summarise, tables
from support.lambda_tasks import EPOCHS, TASKS
from support.options import positive_integer
from support.resumable import PROGRESS_FORMAT, silence_lightning, train_once, write_json

VALUES = (0.03, 0.1, 0.3, 1.0, 3.0)
EVERY = 10


@dataclass(frozen=True)
class Training:
    """What tells one training from the others."""

    task: str
    way: str
    value: float
    seed: int
    epochs: int

    @property
    def file(self) -> str:
        """Name of the result's file."""
        return f"{self.task}_{self.way}_{self.value:g}_seed{self.seed}.json"


def trainings(task: str, options: argparse.Namespace) -> list[Training]:
    """All trainings of one task; without a penalty all ways are the same."""
    values = VALUES[-1:] if options.quick else VALUES
    settings = [("none", 0.0), *((way, value) for way in WAYS for value in values)]
    return [Training(task, *each, seed, options.epochs) for each in settings for seed in range(options.seeds)]


def penalty(training: Training, module: LightningModule, data: LightningDataModule) -> list[Callback]:
    """Make the callbacks that a way of setting the strength consists of."""
    way, value = training.way, training.value
    if way == "none":
        return []
    factors = {}
    if way == "layers":
        inputs, _ = data.train_set[: data.batch_size]
        factors = {f"network.{layer}": each for layer, each in balanced_layers(module.network, inputs).items()}
    psp = PSPCallback(lam=value, layer_lam=factors, entropy=(), log_layers=False)
    every = EVERY if way == "throughout" else None
    return [psp] if way == "lam" else [KeepShare(psp, value, every), psp]


def run(training: Training, options: argparse.Namespace, bar: tqdm) -> dict[str, Any]:
    """Train, or read what was trained before."""
    task = TASKS[training.task]
    bar.set_description(f"{training.task}, {training.way} {training.value:g}, seed {training.seed}")

    def make() -> tuple[LightningModule, LightningDataModule, list[Callback]]:
        module, data = task.module(), task.data(options.data, training.seed)
        return module, data, penalty(training, module, data)

    def measure(module: LightningModule, data: LightningDataModule) -> dict[str, Any]:
        found = evaluate(module, data.test_dataloader())
        for callback in module.trainer.callbacks:
            if isinstance(callback, KeepShare):
                found |= {"lams": callback.lams, "measuring": callback.seconds}
        return found

    path = options.output / "trainings" / training.file
    return train_once(path, asdict(training), make, bar=bar, accelerator="cpu", measure=measure)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Compare λ and shares of the gradient as settings of PSP's strength.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="folder of MNIST and Fashion-MNIST, as torchvision stores them")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="the tasks, in this order")
    parser.add_argument("--seeds", type=positive_integer, default=3, help="splits and trainings of each value")
    parser.add_argument("--epochs", type=positive_integer, default=EPOCHS, help="epochs of each training")
    parser.add_argument("--quick", action="store_true", help="one value of each way, one seed, one epoch")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "output" / "lambda_study", help="folder of the results"
    )
    options = parser.parse_args()
    if options.data is None and not all(task.startswith("digits") for task in options.tasks):
        parser.error("tasks on MNIST and Fashion-MNIST need --data; those on digits are named by --tasks")
    if options.quick:
        options.seeds = options.epochs = 1
        options.output = options.output / "quick"
    return options


def main() -> None:
    """Run all trainings behind one progress bar; tables, picture and JSON are written anew after each task."""
    options = parse_arguments()
    (options.output / "trainings").mkdir(parents=True, exist_ok=True)
    silence_lightning()
    torch.set_num_threads(1)  # sharing so small a network between cores costs more than it saves
    planned = {task: trainings(task, options) for task in options.tasks}
    results: list[dict[str, Any]] = []
    total = sum(map(len, planned.values())) * options.epochs
    with tqdm(total=total, unit="epoch", bar_format=PROGRESS_FORMAT) as bar:
        for of_task in planned.values():
            results += [run(training, options, bar) for training in of_task]
            write_report(summarise(results), options, results[0]["versions"])
    print(f"\n{tables(summarise(results))}\nTables, picture and JSON: {options.output}")


def write_report(entries: Sequence[dict[str, Any]], options: argparse.Namespace, versions: dict[str, str]) -> None:
    """Write the JSON file, the tables and the picture of the tasks that are done."""
    settings = {"seeds": options.seeds, "epochs": options.epochs, "versions": versions}
    shared = {way: next(iter(one_value(entries, way).values()))["value"] for way in WAYS}
    write_json(options.output / "lambda_study.json", {**settings, "one_value": shared, "entries": entries})
    (options.output / "lambda_study.md").write_text(tables(entries))
    draw(entries, options.output / "lambda_study.png")


if __name__ == "__main__":
    main()
