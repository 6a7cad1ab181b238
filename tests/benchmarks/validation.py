"""What the callback adds to a validation run: ⟨z²⟩, and the PSP-entropy that it measures where nothing is asked for.

Validations of a network without callback, with ⟨z²⟩ alone and with entropy take turns. Processor time of one thread
is compared, medians of ratios within a round, for other programs make it vary less than time.

    python tests/benchmarks/validation.py
    python tests/benchmarks/validation.py --models resnet18 --batch-size 100
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings

import torch
from lightning.pytorch import Trainer
from models import MODELS, Classifier
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from lightning_psp import PSPCallback

ARMS = {"none": [], "⟨z²⟩": [PSPCallback(lam=0, entropy=())], "entropy": [PSPCallback(lam=0)]}


class Validated(Classifier):
    """A module that is validated by the loss of its training steps."""

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Logs the loss."""
        self.log("loss", self.training_step(batch, batch_index))


def trainer_with(callbacks: list[PSPCallback]) -> Trainer:
    """A trainer that writes and prints nothing."""
    return Trainer(
        callbacks=[*callbacks],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def print_ratios(options: argparse.Namespace) -> None:
    """Prints a line a model: the time of a run, and what it is multiplied by."""
    print(f"torch {torch.__version__}, one thread")
    print(f"{'model':<14}{'batch':>6}{'without (ms)':>14}{'⟨z²⟩':>8}{'entropy too':>13}{'quartiles':>15}")
    for name in options.models:
        torch.manual_seed(0)
        model = MODELS[name]
        size = options.batch_size or model.batch_size
        batches = [model.batch(model.size, size, "cpu") for _ in range(max(1, options.images // size))]
        module = Validated(model.make(model.size))
        trainers = {arm: trainer_with(callbacks) for arm, callbacks in ARMS.items()}
        times: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for _ in tqdm(range(options.rounds + 1), leave=False, disable=None):
            for arm, trainer in trainers.items():
                start = time.process_time()
                trainer.validate(module, DataLoader(batches, batch_size=None), verbose=False)
                times[arm].append(time.process_time() - start)
        without, z2, both = (found[1:] for found in times.values())  # the first round warms up
        ratios = [[a / b for a, b in zip(found, without, strict=True)] for found in (z2, both)]
        first, median, third = statistics.quantiles(ratios[1], n=4)
        line = f"{name:<14}{size:>6}{1e3 * statistics.median(without):>14.0f}{statistics.median(ratios[0]):>8.3f}"
        print(f"{line}{median:>13.3f}{f'{first:.3f}-{third:.3f}':>15}", flush=True)


def main() -> None:
    """Prints what the options ask for."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["lenet5", "resnet18"])
    parser.add_argument("--batch-size", type=int, default=0, help="0: the model's own")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print_ratios(options)


if __name__ == "__main__":
    main()
