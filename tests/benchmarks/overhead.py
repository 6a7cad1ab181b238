"""Cost of the callback: time and peak memory of a training step with it over the same step without.

Blocks of both kinds of steps alternate within one `Trainer.fit`, so that a drift of the machine's speed meets both
alike. The first steps of a block are not counted: there the allocator gets used to the other kind. The ratio of times
is the median over neighbouring blocks of the ratio of their medians. Peak memory is the growth of the process over a
run of its own with and without the callback (on a GPU, the allocator's peak).

    python tests/benchmarks/overhead.py
    python tests/benchmarks/overhead.py --models resnet18 --device cuda --precision bf16-mixed --batch-size 1024
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision.models import VisionTransformer, mobilenet_v2, resnet18
from tqdm import tqdm

from lightning_psp import PSPCallback

CLASSES = 10
LAM = 1e-3
BLOCK = 6
NOT_COUNTED = 2


def lenet5() -> nn.Module:
    """20 and 50 filters, 500 hidden units."""
    return nn.Sequential(
        *(
            nn.Conv2d(1, 20, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(20, 50, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ),
        *(nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, CLASSES)),
    )


def resnet18_small_images() -> nn.Module:
    """Torchvision's ResNet-18 with the stem that images of 32×32 take."""
    network = resnet18(num_classes=CLASSES)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def small_vit() -> nn.Module:
    """Six blocks of width 192 on 4×4 patches."""
    return VisionTransformer(
        image_size=32,
        patch_size=4,
        num_layers=6,
        num_heads=3,
        hidden_dim=192,
        mlp_dim=768,
        num_classes=CLASSES,
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int], int]] = {
    "lenet5": (lenet5, (1, 28, 28), 100),
    "resnet18": (resnet18_small_images, (3, 32, 32), 64),
    "mobilenet_v2": (lambda: mobilenet_v2(num_classes=CLASSES), (3, 32, 32), 64),
    "vit": (small_vit, (3, 32, 32), 64),
}


class Classifier(LightningModule):
    """A plain module that knows nothing of potentials."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Cross entropy of a batch."""
        images, labels = batch
        return functional.cross_entropy(self.network(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


class RandomImages(Dataset[tuple[Tensor, int]]):
    """The same random image again and again."""

    def __init__(self, shape: tuple[int, int, int], length: int) -> None:
        self._image = torch.randn(shape)
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._image, index % CLASSES


class Alternate(Callback):
    """Runs every other block of steps with the penalty and takes the time from the start of a step to the next's."""

    def __init__(self, psp: PSPCallback, progress: tqdm[Any]) -> None:
        self.psp = psp
        self.blocks: list[list[float]] = []
        self._progress = progress
        self._start: float | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        if self._start is not None:
            self.blocks[-1].append(time.perf_counter() - self._start)
        self._progress.update()
        if batch_idx % BLOCK == 0:
            self.blocks.append([])
            if len(self.blocks) % 2:
                self.psp.teardown(trainer, pl_module, "fit")
            else:
                self.psp.on_fit_start(trainer, pl_module)
        self._start = time.perf_counter()

    def on_before_backward(self, *args: Any) -> None:
        self.psp.on_before_backward(*args)

    def on_after_backward(self, *args: Any) -> None:
        self.psp.on_after_backward(*args)

    def on_train_batch_end(self, *args: Any) -> None:
        self.psp.on_train_batch_end(*args)


def fit(options: argparse.Namespace, name: str, callbacks: list[Callback], steps: int) -> None:
    """Trains one of the models for some steps."""
    torch.manual_seed(0)
    make, shape, batch_size = MODELS[name]
    batch_size = options.batch_size or batch_size
    network = make()
    if options.channels_last:
        network = network.to(memory_format=torch.channels_last)
    trainer = Trainer(
        max_steps=steps,
        callbacks=callbacks,
        accelerator=options.device,
        devices=1,
        precision=options.precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        Classifier(network),
        DataLoader(RandomImages(shape, steps * batch_size), batch_size=batch_size),
    )


def time_ratio(options: argparse.Namespace, name: str) -> dict[str, float]:
    """Median over pairs of neighbouring blocks of the time with over the time without."""
    steps = 2 * BLOCK * (options.pairs + 1) + 1
    with tqdm(total=steps, desc=name, leave=False) as progress:
        alternate = Alternate(PSPCallback(lam=LAM), progress)
        fit(options, name, [alternate], steps)
    medians = [statistics.median(block[NOT_COUNTED:]) for block in alternate.blocks if len(block) == BLOCK]
    without, with_penalty = medians[2::2], medians[3::2]  # the first pair warms up
    quartiles = statistics.quantiles([a / b for a, b in zip(with_penalty, without, strict=True)], n=4)
    return {
        "without_ms": 1e3 * statistics.median(without),
        "ratio": quartiles[1],
        "first_quartile": quartiles[0],
        "third_quartile": quartiles[2],
    }


def peak_memory(options: argparse.Namespace, name: str) -> dict[str, float]:
    """Peak memory in MiB of processes that train with and without the callback, above the one that has loaded."""
    peaks = {}
    for arm in ("with", "without"):
        command = [
            sys.executable,
            __file__,
            "--memory-of",
            arm,
            "--models",
            name,
            "--device",
            options.device,
        ]
        command += ["--precision", options.precision, "--batch-size", str(options.batch_size)]
        command += ["--channels-last"] if options.channels_last else []
        peaks[arm] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"memory_without": peaks["without"], "memory_ratio": peaks["with"] / peaks["without"]}


def measure_memory(options: argparse.Namespace, name: str) -> float:
    """Peak memory of a few training steps in this process, in MiB."""
    before = process_memory("VmRSS")
    fit(options, name, [PSPCallback(lam=LAM)] if options.memory_of == "with" else [], 3)
    if options.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return process_memory("VmHWM") - before


def process_memory(field: str) -> float:
    """The resident memory of this process (VmRSS) or its peak (VmHWM) in MiB, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 2**10 for line in lines if line.startswith(f"{field}:"))


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--pairs", type=int, default=12, help="pairs of blocks of steps")
    parser.add_argument("--batch-size", type=int, default=0, help="0: the model's own")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--memory-of", choices=["with", "without"], help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Prints a line a model."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    options = parse()
    if options.memory_of:
        print(measure_memory(options, options.models[0]))
        return
    print(f"torch {torch.__version__}, {options.device}, {options.precision}, {torch.get_num_threads()} threads")
    print(f"{'model':<14}{'step (ms)':>10}{'time ratio':>12}{'quartiles':>16}{'memory (MiB)':>14}{'ratio':>8}")
    for name in options.models:
        row = {**time_ratio(options, name), **peak_memory(options, name)}
        quartiles = f"{row['first_quartile']:.3f}-{row['third_quartile']:.3f}"
        print(
            f"{name:<14}{row['without_ms']:>10.1f}{row['ratio']:>12.3f}{quartiles:>16}"
            f"{row['memory_without']:>14.0f}{row['memory_ratio']:>8.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
