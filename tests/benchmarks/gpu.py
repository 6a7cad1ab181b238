"""Cost of the callback on a GPU: time and peak memory of a training step over networks, precisions and batch sizes.

    python tests/benchmarks/gpu.py --models resnet50 --precisions 32-true bf16-mixed --batch-sizes 1 64 256
    python tests/benchmarks/gpu.py --models gpt --precisions bf16-mixed --batch-sizes 32 --compile

A line for each combination: steps without penalty, with the callback and with hooks take turns in blocks within one
`Trainer.fit`, as in `overhead.py`. A step's time includes waiting for the GPU; peak memory is that of PyTorch's
allocator within a block. The ratio of times is the median over rounds of blocks of the ratio of their medians.

`--alone` adds the time of the GPU alone: in a further round each step is told to the GPU while that still sleeps, so
that it never waits for Python. Not with fp16, whose loss scale the processor waits for in each step.

`--lock FILE` lets several of these processes get ready at once and measure one after another: the first round of
blocks, which compiles and warms up, does not count, and whoever is behind it waits until no other process measures.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import itertools
import logging
import statistics
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from models import MODELS
from overhead import BLOCK, NOT_COUNTED, Alternate, fit, quartiles
from timing import wait
from tqdm import tqdm

# How long the GPU sleeps before a step whose time on it is taken: at the highest clock of an H200 a tenth of a second.
ASLEEP = 200_000_000


class Measure(Alternate):
    """Times and peak memory of blocks, of which those behind the first round hold the lock.

    Args:
        arms: of "none", "callback" and "naive" those that take turns.
        progress: the bar that shows the steps.
        rounds: those that count, behind the first. In the blocks that follow them the GPU's own time is taken.
        lock: the file that is locked while this process measures.
    """

    def __init__(self, arms: tuple[str, ...], progress: tqdm[Any], rounds: int, lock: Path | None) -> None:
        super().__init__(arms, progress, time.perf_counter)
        self.memory: list[float] = []
        self.alone: dict[str, list[float]] = {arm: [] for arm in arms}
        self._counted = len(arms) * (rounds + 1)
        self._lock = lock
        self._held = contextlib.ExitStack()
        self._woken: torch.cuda.Event | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._take_own_time(batch_idx)
        if batch_idx % BLOCK == 0:
            wait(pl_module.device.type)
            if batch_idx:
                self.memory.append(peak_memory(pl_module.device))
            if len(self.blocks) == len(self._arms):
                self._held.enter_context(locked(self._lock))
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if batch_idx % BLOCK == NOT_COUNTED and pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        if len(self.blocks) > self._counted and pl_module.device.type == "cuda":
            torch.cuda._sleep(ASLEEP)
            self._woken = torch.cuda.Event(enable_timing=True)
            self._woken.record()

    def _take_own_time(self, batch_idx: int) -> None:
        """Of the step that has been told to the GPU, if that slept before it."""
        if self._woken is None:
            return
        done = torch.cuda.Event(enable_timing=True)
        done.record()
        done.synchronize()
        if (batch_idx - 1) % BLOCK >= NOT_COUNTED:
            self.alone[self._arms[(len(self.blocks) - 1) % len(self._arms)]].append(self._woken.elapsed_time(done))

    def release(self) -> None:
        """Lets others measure."""
        self._held.close()


def peak_memory(device: torch.device) -> float:
    """Peak of the allocator in MiB, nothing on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else float("nan")


@contextlib.contextmanager
def locked(path: Path | None) -> Iterator[None]:
    """Holds a lock on a file, where there is one."""
    if path is None:
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def measure(options: argparse.Namespace, name: str, precision: str, batch_size: int) -> None:
    """Prints a line for each arm of a combination."""
    # Hooks that come and go would have a compiled network compiled anew in every block.
    arms = ("none", "callback") if options.compile else ("none", "callback", "naive")
    options.precision, options.batch_size = precision, batch_size
    steps = len(arms) * BLOCK * (options.rounds + 1 + options.alone) + 1
    with tqdm(total=steps, desc=f"{name} {precision} {batch_size}", leave=False, disable=None) as progress:
        blocks = Measure(arms, progress, options.rounds, options.lock)
        try:
            fit(options, name, [blocks], steps, tiny=options.tiny)
        except torch.OutOfMemoryError:
            print(f"| {name} | {precision} | {batch_size} | does not fit |", flush=True)
            torch.cuda.empty_cache()
            return
        finally:
            blocks.release()
    times = [statistics.median(block[NOT_COUNTED:]) for block in blocks.blocks if len(block) == BLOCK]
    first, last = len(arms), len(arms) * (options.rounds + 1)  # the first round warms up
    of_arm = {arm: times[first + at : last : first] for at, arm in enumerate(arms)}
    memory = {arm: statistics.median(blocks.memory[first + at : last : first]) for at, arm in enumerate(arms)}
    step, start = 1e3 * statistics.median(of_arm["none"]), memory["none"]
    cells = [name, precision, str(batch_size), f"{step:.1f}", f"{start:.0f}"]
    for arm in arms[1:]:
        low, ratio, high = quartiles([a / b for a, b in zip(of_arm[arm], of_arm["none"], strict=True)])
        cells += [f"{ratio:.3f}", f"{low:.3f}–{high:.3f}", f"{memory[arm] / start:.3f}"]
    if options.alone:
        alone = {arm: statistics.median(own) if own else float("nan") for arm, own in blocks.alone.items()}
        cells += [f"{alone['none']:.1f}", *(f"{alone[arm] / alone['none']:.3f}" for arm in arms[1:])]
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Measures all combinations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", choices=list(MODELS), default=["resnet18", "resnet50", "vit_b_16", "gpt"]
    )
    parser.add_argument("--precisions", nargs="+", default=["32-true", "bf16-mixed", "16-mixed"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--rounds", type=int, default=4, help="rounds of blocks of steps that count")
    parser.add_argument("--alone", action="store_true", help="the time of the GPU alone, too")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network; without the naive arm")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--lock", type=Path, help="file that is locked while this process measures")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--tiny", action="store_true", help="two of the smallest inputs, to try the script")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    where = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    compiled = ", compiled" if options.compile else ""
    layout = ", channels last" if options.channels_last else ""
    print(f"torch {torch.__version__}, {where}{compiled}{layout}, {options.rounds} rounds")
    heads = ["model", "precision", "batch", "step (ms)", "memory (MiB)"]
    arms = ("callback",) if options.compile else ("callback", "hooks")
    heads += [f"{arm}{what}" for arm in arms for what in (": time", ": quartiles", ": memory")]
    heads += ["GPU alone (ms)", *(f"{arm}: GPU alone" for arm in arms)] if options.alone else []
    print(f"| {' | '.join(heads)} |", flush=True)
    for name, precision, batch_size in itertools.product(options.models, options.precisions, options.batch_sizes):
        measure(options, name, precision, batch_size)


if __name__ == "__main__":
    main()
