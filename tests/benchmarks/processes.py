"""What the callback costs where several processes train together: time of a step, and what they tell each other.

Starts one and two processes of one thread that train on random batches of one size each (weak scaling) with Gloo on a
CPU, without penalty and with the callback. Communication is counted by torch's profiler, that of
`DistributedDataParallel` included: calls and the bytes that a process puts in, in a plain step, in one whose values go
to a logger, and at the end of an epoch. Times and processor times are medians over steps of the first process.

    python tests/benchmarks/processes.py
    python tests/benchmarks/processes.py --models resnet18 --steps 40
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from models import LAM, MODELS, Classifier
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from lightning_psp import PSPCallback

ARMS = {"none": None, "callback": "mean", "callback, squared_mean": "squared_mean"}
LOGGED_EVERY = 8
NOT_TIMED = 4
BYTES = {"double": 8, "float": 4, "long int": 8, "unsigned char": 1}


class Watched(Callback):
    """Takes the time of steps, then counts what processes tell each other.

    Args:
        timed: the number of steps whose time is taken.
    """

    def __init__(self, timed: int) -> None:
        self.seconds: list[tuple[float, float]] = []
        self.counts: dict[str, list[int]] = {}
        self._timed = timed
        self._profiler: profile | None = None
        self._name = ""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Ends what was counted before, and starts the next."""
        self._end()
        last = trainer.num_training_batches
        first = last - 2 * LOGGED_EVERY
        if batch_idx == first:
            self._begin("step")
        elif batch_idx == first + LOGGED_EVERY - 1:
            self._begin("logged step")
        elif batch_idx == last - 1:
            self._begin("logged step and the epoch's end")
        self._start = time.perf_counter(), time.process_time()

    def on_train_batch_end(self, *args: Any) -> None:
        """Takes the time."""
        if len(self.seconds) < self._timed:
            self.seconds.append((time.perf_counter() - self._start[0], time.process_time() - self._start[1]))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the last count."""
        self._end()

    def _begin(self, name: str) -> None:
        self._name = name
        self._profiler = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
        self._profiler.start()

    def _end(self) -> None:
        if self._profiler is None:
            return
        self._profiler.stop()
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace.json"
            self._profiler.export_chrome_trace(str(trace))
            events = json.loads(trace.read_text())["traceEvents"]
        self._profiler = None
        count = self.counts[self._name] = [0, 0]
        for event in events:
            if event.get("name", "").startswith("gloo:"):
                count[0] += 1
                given = event["args"]
                for kind, shape in zip(given.get("Input type", ()), given.get("Input Dims", ()), strict=True):
                    count[1] += BYTES[kind] * torch.Size(shape).numel()


def train(options: argparse.Namespace) -> dict[str, Any]:
    """What one process finds."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = MODELS[options.models[0]]
    size = model.smallest_size if options.tiny else model.size
    inputs, labels = model.batch(size, 2 if options.tiny else model.batch_size // 2, "cpu")
    watched = Watched(options.steps)
    reduction = ARMS[options.arm]
    callbacks: list[Callback] = [watched]
    if reduction is not None:
        callbacks.append(PSPCallback(lam=LAM, reduction=reduction, entropy=()))
    steps = (options.steps // LOGGED_EVERY + 4) * LOGGED_EVERY  # the last one is logged
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=1,
            callbacks=callbacks,
            accelerator="cpu",
            devices=options.processes,
            strategy=DDPStrategy(process_group_backend="gloo") if options.processes > 1 else "auto",
            logger=CSVLogger(folder),
            log_every_n_steps=LOGGED_EVERY,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Classifier(model.make(size)), DataLoader([(inputs, labels)] * steps, batch_size=None))
    wall, processor = zip(*watched.seconds[NOT_TIMED:], strict=True)
    return {"wall": statistics.median(wall), "processor": statistics.median(processor), "counts": watched.counts}


def start(options: argparse.Namespace, name: str, arm: str, processes: int) -> dict[str, Any]:
    """Runs the processes and returns what the first one found."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    command = [sys.executable, __file__, "--models", name, "--arm", arm, "--processes", str(processes)]
    command += ["--steps", str(options.steps), *["--tiny"] * options.tiny]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0", "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            command,
            env={**os.environ, **meeting, "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for rank in range(processes)
    ]
    printed = [process.communicate()[0] for process in running]
    found: dict[str, Any] = json.loads(printed[0].splitlines()[-1])
    return found


def print_table(options: argparse.Namespace) -> None:
    """Prints a line for each model, number of processes and arm."""
    print(f"torch {torch.__version__}, gloo, one thread a process, {os.cpu_count()} cores")
    titles = ("step", "logged step", "epoch's end")
    print(f"{'model':<10}{'processes':>10}  {'arm':<24}{'ms':>9}{'CPU ms':>9}" + "".join(f"{t:>22}" for t in titles))
    for name in options.models:
        for processes in (1, 2):
            for arm in ARMS:
                found = start(options, name, arm, processes)
                counts = found["counts"]
                step, logged = counts["step"], counts["logged step"]
                end = [a - b for a, b in zip(counts["logged step and the epoch's end"], logged, strict=True)]
                cells = "".join(f"{f'{calls} ({size:,} B)':>22}" for calls, size in (step, logged, end))
                times = f"{1e3 * found['wall']:>9.1f}{1e3 * found['processor']:>9.1f}"
                print(f"{name:<10}{processes:>10}  {arm:<24}{times}{cells}", flush=True)


def main() -> None:
    """Prints the table, or trains as one process."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["lenet5", "resnet18"])
    parser.add_argument("--steps", type=int, default=24, help="steps whose time is taken")
    parser.add_argument("--tiny", action="store_true", help="batches of two of the smallest size, to count alone")
    parser.add_argument("--arm", choices=list(ARMS), help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm is None:
        print_table(options)
    else:
        print(json.dumps(train(options)))


if __name__ == "__main__":
    main()
