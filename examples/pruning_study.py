"""Gradual against one-shot pruning: Fig. 1 of the second paper, on MNIST and Fashion-MNIST or on the digits.

    python examples/pruning_study.py --data FOLDER [--tasks lenet300_mnist ...] [--repeats N] [--workers N] ...
    python examples/pruning_study.py --small

Every task is pruned gradually by `LobsterPruning`, from some seeds, without PSP and with it. At several of the
sparsities that the first of these trainings reached, networks are then trained in one go: with its masks from its own
initial weights (the lottery ticket), with its masks from other initial weights, with as many weights at random places,
and with masks made at once of a dense network's magnitudes, from whose weights the training goes on. Every training is
judged by its weights with the lowest loss on held-out training images, at each sparsity; errors are those on the test
set.

Every training leaves a JSON file, and weights and masks of each sparsity; what is done is skipped, and a training that
was broken off goes on at its last whole epoch. At the end `pruning_study.json`, and a table and a picture for each task
are made of them. `--small` prunes the small LeNet of the quickstart on scikit-learn's digits: a few minutes.
"""

import argparse
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule
from torch import Tensor, nn
from tqdm import tqdm

from lightning_psp import PSPCallback
from lightning_psp.pruning import LobsterPruning, MaskedTraining, magnitude_masks, random_masks_like
from support.classifier import Classifier
from support.data import Digits
from support.images import MNIST, FashionMNIST
from support.models import DigitsLeNet
from support.networks import LeNet5, LeNet300
from support.options import positive_integer
from support.pruning_levels import LevelRecorder, levels_so_far
from support.pruning_report import report
from support.resumable import silence_lightning, train_once, write_json

ONE_SHOT_ARMS = ("lottery_ticket", "random_initialisation", "random_structure", "one_shot")


@dataclass(frozen=True)
class Task:
    """A network, its data, and how both are trained and pruned."""

    title: str
    network: Callable[[], nn.Module]
    data: Callable[[Path], LightningDataModule]
    patience: int  # validations without improvement that make a plateau
    epochs: int  # of a one-shot training
    repeats: int  # of each one-shot arm at each sparsity
    seeds: int  # of the gradual trainings, without PSP and with it
    lam: float  # of PSP
    levels: int  # sparsities at which the one-shot arms are trained
    most_epochs: int  # of a gradual training, which may also end by itself
    learning_rate: float = 0.1


def _mnist(folder: Path) -> LightningDataModule:
    return MNIST(folder, held_out=6000)


def _fashion(folder: Path) -> LightningDataModule:
    return FashionMNIST(folder, held_out=6000)


def _digits(folder: Path) -> LightningDataModule:
    return Digits()


TASKS = {
    "lenet300_mnist": Task("LeNet-300 on MNIST", LeNet300, _mnist, 20, 30, 10, 3, 1e-3, 4, 600),
    "lenet5_mnist": Task("LeNet-5 on MNIST", LeNet5, _mnist, 10, 15, 3, 1, 1e-3, 4, 500),
    "lenet300_fashion": Task("LeNet-300 on Fashion-MNIST", LeNet300, _fashion, 20, 30, 3, 3, 1e-3, 4, 600),
    "lenet5_fashion": Task("LeNet-5 on Fashion-MNIST", LeNet5, _fashion, 10, 15, 3, 1, 1e-3, 4, 400),
}
SMALL = {"digits": Task("small LeNet on digits", DigitsLeNet, _digits, 4, 30, 2, 1, 0.3, 2, 150)}


@dataclass(frozen=True)
class Training:
    """What tells one training from the others."""

    task: str
    arm: str
    seed: int
    epochs: int
    lam: float = 0.0  # of PSP
    level: int = 0  # of the gradual training, whose masks or sparsity this training has
    sparsity: float = 0.0

    @property
    def name(self) -> str:
        """Name of the files of the result."""
        psp = "_psp" if self.lam else ""
        level = f"_level{self.level:02}" if self.arm in ONE_SHOT_ARMS else ""
        return f"{self.task}_{self.arm}{psp}{level}_seed{self.seed}"


class Study:
    """The trainings of one call.

    Args:
        options: The command line.
        tasks: The tasks by name.
    """

    def __init__(self, options: argparse.Namespace, tasks: Mapping[str, Task]) -> None:
        self.options = options
        self.tasks = tasks

    def ready(self, results: Mapping[Training, Mapping[str, Any]]) -> Iterator[Training]:
        """All trainings whose beginnings are there, given those that are done; what others wait for comes first."""
        for name, task in self.tasks.items():
            first, *further = (
                Training(name, "gradual", seed, task.most_epochs, lam)
                for seed in range(self.options.seeds or task.seeds)
                for lam in (0.0, task.lam)
            )
            yield first
            for seed in range(self.options.repeats or task.repeats):
                dense = Training(name, "dense", seed, task.epochs)
                yield dense
                levels = results[first]["levels"] if first in results else []
                for level in spread([each["sparsity"] for each in levels], task.levels):
                    for arm in ONE_SHOT_ARMS:
                        if arm != "one_shot" or dense in results:
                            yield Training(name, arm, seed, task.epochs, 0.0, level, levels[level]["sparsity"])
            yield from further

    def run(self, training: Training) -> dict[str, Any]:
        """Train, or read what was trained before."""
        silence_lightning()
        torch.set_num_threads(1)  # sharing so small networks between cores costs more than it saves
        recorder = LevelRecorder(self.folder(training))

        def make() -> tuple[Classifier, LightningDataModule, list[Callback]]:
            task = self.tasks[training.task]
            network = task.network().to(memory_format=torch.channels_last)  # a third less time for LeNet-5 on CPU
            module = Classifier(network, learning_rate=task.learning_rate)
            pruning = self.pruning(training, module, task)
            recorder.watch(pruning)
            psp = [PSPCallback(lam=training.lam, entropy=())] if training.lam else []
            return module, task.data(self.options.data), [*psp, recorder, pruning]

        return train_once(
            self.path(training),
            asdict(training),
            make,
            bar=tqdm(disable=True),
            accelerator=self.options.accelerator,
            measure=recorder.measure,
        )

    def pruning(self, training: Training, module: Classifier, task: Task) -> LobsterPruning | MaskedTraining:
        """The callback of the training's arm."""
        first = Training(training.task, "gradual", 0, task.most_epochs)
        initial = self.folder(first) / "initial.pt"
        if training.arm == "gradual":
            path = self.folder(training) / "initial.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(module.state_dict(), path)
            return LobsterPruning(patience=task.patience)
        if training.arm == "dense":
            return MaskedTraining(magnitude_masks(module, sparsity=0.0))
        if training.arm == "one_shot":
            dense = self.load(Training(training.task, "dense", training.seed, task.epochs), 0)["weights"]
            module.load_state_dict(dense)
            return MaskedTraining(magnitude_masks(module, sparsity=training.sparsity))
        masks: dict[str, Tensor] = self.load(first, training.level)["masks"]
        if training.arm == "lottery_ticket":
            return MaskedTraining(masks, rewind_to=torch.load(initial, weights_only=True, map_location="cpu"))
        if training.arm == "random_structure":
            masks = random_masks_like(masks, seed=training.seed)
        # The network's own initial weights are those of this seed: seed 0's are the gradual training's.
        return MaskedTraining(masks, rewind_to="random", seed=1 + training.seed)

    def found(self, *, unended: bool) -> dict[Training, dict[str, Any]]:
        """Read the trainings that are done, and those pruned gradually as far as their checkpoints go if `unended`."""
        found: dict[Training, dict[str, Any]] = {}
        while True:  # what is done tells of further trainings
            new: dict[Training, dict[str, Any]] = {}
            for training in self.ready(found):
                checkpoint = self.options.results / "checkpoints" / training.name / "last.ckpt"
                if training in found:
                    continue
                if self.path(training).exists():
                    new[training] = self.run(training)
                elif (
                    unended
                    and training.arm == "gradual"
                    and checkpoint.exists()
                    and (levels := levels_so_far(checkpoint))
                ):
                    new[training] = {"levels": levels, "ended": False}
            if not new:
                return found
            found |= new

    def path(self, training: Training) -> Path:
        """File of the result of a training."""
        return self.options.results / f"{training.name}.json"

    def folder(self, training: Training) -> Path:
        """Folder of the weights of a training."""
        return self.options.results / training.name

    def load(self, training: Training, level: int) -> dict[str, Any]:
        """Weights and masks that a training had at a level."""
        return torch.load(self.folder(training) / f"level{level:02}.pt", weights_only=True, map_location="cpu")


def spread(sparsities: list[float], number: int) -> list[int]:
    """Choose levels whose shares of weights left are about equal factors apart, the last one among them.

    Args:
        sparsities: Share of zeros at each level, in ascending order, the dense network first.
        number: How many levels to choose; fewer where there are fewer.

    Returns:
        Indices of the levels, in ascending order; none where nothing was pruned.
    """
    left = [1 - sparsity for sparsity in sparsities]
    if len(left) < 2:
        return []
    wanted = [left[-1] ** (part / number) for part in range(1, number + 1)]
    nearest = [min(range(1, len(left)), key=lambda level: abs(math.log(left[level] / share))) for share in wanted]
    return sorted(set(nearest))


def run_all(study: Study, workers: int) -> dict[Training, dict[str, Any]]:
    """Run every training as soon as those that it begins from are done."""
    results = study.found(unended=False)
    running: dict[Future[dict[str, Any]], Training] = {}
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    with pool, tqdm(unit="training", initial=len(results)) as bar:
        try:
            while True:
                known = dict.fromkeys(study.ready(results))
                waiting = [each for each in known if each not in results and each not in running.values()]
                for training in waiting[: workers - len(running)]:
                    running[pool.submit(study.run, training)] = training
                bar.total = len(known)
                bar.set_postfix_str("as far as known")
                if not running:
                    return results
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    training = running.pop(future)
                    results[training] = future.result()
                    bar.set_description(training.name)
                    bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Prune networks gradually and in one shot.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the sets, as torchvision stores them")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="tasks, in order")
    parser.add_argument("--small", action="store_true", help="scikit-learn's digits instead")
    parser.add_argument("--seeds", type=positive_integer, help="gradual trainings; by default as in the table")
    parser.add_argument("--repeats", type=positive_integer, help="of each one-shot arm; by default as in the table")
    parser.add_argument("--workers", type=positive_integer, default=os.cpu_count(), help="trainings at a time")
    parser.add_argument("--so-far", action="store_true", help="train nothing: report what there is, unended ones too")
    parser.add_argument("--accelerator", default="auto", help="accelerator of the Trainer")
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "output" / "pruning_study", help="folder of the results"
    )
    options = parser.parse_args()
    if options.data is None and not options.small:
        parser.error("the following arguments are required: --data, or --small")
    return options


def main() -> None:
    """Run all trainings behind one progress bar, then make the table and the pictures."""
    options = parse_arguments()
    options.results.mkdir(parents=True, exist_ok=True)
    tasks = SMALL if options.small else {name: TASKS[name] for name in options.tasks}
    study = Study(options, tasks)
    results = study.found(unended=True) if options.so_far else run_all(study, options.workers)
    rows = [
        {
            **asdict(training),
            "ended": results[training].get("ended", True),
            "accelerator": results[training].get("accelerator"),  # of the last part, where a training was broken off
            "levels": results[training]["levels"],
        }
        for training in sorted(results, key=str)
    ]
    versions = next((result["versions"] for result in results.values() if "versions" in result), {})
    write_json(options.results / "pruning_study.json", {"versions": versions, "trainings": rows})
    report(rows, {name: task.title for name, task in tasks.items()}, options.results)


if __name__ == "__main__":
    main()
