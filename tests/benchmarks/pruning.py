"""Cost of LobsterPruning's decay and masks: time of a training step with them over the same step without.

Blocks of steps of three kinds alternate within one `Trainer.fit`, so that a drift of the machine's speed meets all
alike: without the callback; with its decay, before anything is pruned; and with the decay and masks under which a share
of the weights is 0. The first steps of a block are not counted. The ratio is the median over rounds of blocks of the
ratio of their medians; beside it stands what the decay alone takes, timed by itself.

    python tests/benchmarks/pruning.py
    python tests/benchmarks/pruning.py --models resnet18 --size 224 --batch-size 16
    python tests/benchmarks/pruning.py --device cuda --precision bf16-mixed
    python tests/benchmarks/pruning.py --clip 1.0
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from models import MODELS, Classifier
from overhead import quartiles
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from lightning_psp.pruning import LobsterPruning, magnitude_masks
from lightning_psp.pruning.decay import sensitivity_decay

BLOCK = 6
NOT_COUNTED = 2
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
ARMS = ("none", "decay", "decay and masks")


class Alternate(Callback):
    """Runs blocks of steps in turn of each arm, and takes the time of each step.

    Args:
        sparsity: share of the weights that is 0 in the last arm.
        clock: gives the time.
        progress: the bar that shows the steps.
    """

    def __init__(self, sparsity: float, clock: Callable[[], float], progress: tqdm[Any]) -> None:
        self.pruning = LobsterPruning(lam=1e-4)
        self.blocks: list[list[float]] = []
        self._sparsity = sparsity
        self._clock = clock
        self._progress = progress
        self._start: float | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        if self._start is not None:
            self.blocks[-1].append(self._clock() - self._start)
        self._progress.update()
        if batch_idx % BLOCK == 0:
            self._begin(ARMS[len(self.blocks) % len(ARMS)], trainer, pl_module)
            self.blocks.append([])
        self._start = self._clock()

    def _begin(self, arm: str, trainer: Trainer, pl_module: LightningModule) -> None:
        self.pruning.teardown(trainer, pl_module, "fit")
        if arm == "none":
            return
        self.pruning.masks = {}
        callbacks = trainer.callbacks
        self.pruning.on_fit_start(trainer, pl_module)
        trainer.callbacks = callbacks  # the callback, which is called from here, puts itself among them
        if arm == "decay and masks":
            self.pruning.hold(pl_module, magnitude_masks(pl_module, sparsity=self._sparsity))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self.pruning.on_before_optimizer_step(trainer, pl_module, optimizer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.pruning.teardown(trainer, pl_module, "fit")


class Validated(Classifier):
    """Has the validation that pruning goes by; none of its searches runs here."""

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_index))


def time_blocks(options: argparse.Namespace, name: str) -> dict[str, list[float]]:
    """For each arm the median time of a step in each of its blocks, in seconds."""
    torch.manual_seed(0)
    model = MODELS[name]
    size = options.size or model.size
    inputs, labels = model.batch(size, options.batch_size or model.batch_size, options.device)
    steps = len(ARMS) * BLOCK * (options.rounds + 1) + 1
    with tqdm(total=steps, desc=name, leave=False, disable=None) as progress:
        alternate = Alternate(options.sparsity, CLOCKS[options.clock], progress)
        trainer = Trainer(
            max_steps=steps,
            callbacks=[alternate],
            accelerator=options.device,
            devices=1,
            precision=options.precision,
            gradient_clip_val=options.clip,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        train, validate = (DataLoader([(inputs, labels)] * batches, batch_size=None) for batches in (steps, 1))
        trainer.fit(Validated(model.make(size)), train, validate)
    medians = [statistics.median(block[NOT_COUNTED:]) for block in alternate.blocks if len(block) == BLOCK]
    return {arm: medians[len(ARMS) + index :: len(ARMS)] for index, arm in enumerate(ARMS)}  # the first round warms up


def time_alone(options: argparse.Namespace, name: str, times: int = 15) -> float:
    """The median time of the decay of all weights of a network, in seconds."""
    model = MODELS[name]
    network = model.make(options.size or model.size).to(options.device)
    weights = [parameter.detach() for parameter in network.parameters() if parameter.ndim > 1]
    gradients = [torch.randn_like(weight) for weight in weights]
    taken, clock = [], CLOCKS[options.clock]
    for _ in range(times):
        start = clock()
        sensitivity_decay(weights, gradients, 1e-4)
        if options.device == "cuda":
            torch.cuda.synchronize()
        taken.append(clock() - start)
    return statistics.median(taken)


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["lenet5", "resnet18"])
    parser.add_argument("--rounds", type=int, default=12, help="rounds of blocks of steps")
    parser.add_argument("--batch-size", type=int, default=0, help="0: the model's own")
    parser.add_argument("--size", type=int, default=0, help="height and width of images, 0: the model's own")
    parser.add_argument("--sparsity", type=float, default=0.9, help="share of weights that masks take away")
    parser.add_argument("--clip", type=float, default=None, help="norm that gradients are clipped to")
    parser.add_argument(
        "--clock", default="wall", choices=list(CLOCKS), help="processor: on a CPU that others use, too"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="32-true")
    return parser.parse_args()


def main() -> None:
    """Prints a line a model."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    options = parse()
    print(f"torch {torch.__version__}, {options.device}, {options.precision}, {torch.get_num_threads()} threads")
    print(
        f"{'model':<14}{'step (ms)':>10}{'decay (ms)':>11}" + "".join(f"{arm:>17}{'quartiles':>14}" for arm in ARMS[1:])
    )
    for name in options.models:
        times = time_blocks(options, name)
        line = f"{name:<14}{1e3 * statistics.median(times['none']):>10.1f}{1e3 * time_alone(options, name):>11.2f}"
        for arm in ARMS[1:]:
            first, median, third = quartiles([a / b for a, b in zip(times[arm], times["none"], strict=True)])
            line += f"{median:>17.3f}{f'{first:.3f}-{third:.3f}':>14}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
