"""Cost of the callback: time and peak memory of a training step with it over the same step without.

A third arm penalises potentials the usual way, by hooks on activation modules that square their inputs. Blocks of the
three kinds of steps alternate within one `Trainer.fit`, so that a drift of the machine's speed meets all alike. The
first steps of a block are not counted: there the allocator gets used to the other kind. The ratio of times is the
median over rounds of blocks of the ratio of their medians. Peak memory is the growth of the process over a run of its
own for each arm (on a GPU, the allocator's peak).

`--python` and `--record` ask what Python adds on data as small as it takes. They count processor time of one thread and
compare the fastest steps of both kinds, for a busy machine makes steps slower and never faster.

    python tests/benchmarks/overhead.py
    python tests/benchmarks/overhead.py --models resnet50 gpt --device cuda --precision bf16-mixed --batch-size 64
    python tests/benchmarks/overhead.py --python
    python tests/benchmarks/overhead.py --record --models resnet18 lenet5
    python tests/benchmarks/overhead.py --models resnet18 --profile
    python tests/benchmarks/overhead.py --models lenet5 resnet18 --auto

`--auto` asks what `PSPCallback(lam="auto")` adds: processor time of a step that measures λ over the nine that follow.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import logging
import pstats
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from models import LAM, MODELS, SMALL_MODELS, Classifier
from torch import nn
from torch.autograd import DeviceType
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader
from tqdm import tqdm

import lightning_psp
from lightning_psp import PSPCallback, record_potentials
from lightning_psp.callback.auto_lam import EVERY

BLOCK = 6
NOT_COUNTED = 2
PROFILED_STEPS = 5


class Alternate(Callback):
    """Runs blocks of steps in turn without penalty, with the callback and with hooks, and takes the time of each step.

    Args:
        arms: of "none", "callback" and "naive" those that take turns.
        progress: the bar that shows the steps.
        clock: tells the time in seconds.
    """

    def __init__(self, arms: tuple[str, ...], progress: tqdm[Any], clock: Callable[[], float]) -> None:
        self.psp = PSPCallback(lam=LAM)
        self.blocks: list[list[float]] = []
        self._arms = arms
        self._progress = progress
        self._start: float | None = None
        self._clock = clock

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        if self._start is not None:
            self.blocks[-1].append(self._clock() - self._start)
        self._progress.update()
        if batch_idx % BLOCK == 0:
            assert isinstance(pl_module, Classifier)
            self.psp.teardown(trainer, pl_module, "fit")
            pl_module.remove_hooks()
            arm = self._arms[len(self.blocks) % len(self._arms)]
            if arm == "callback":
                self.psp.on_fit_start(trainer, pl_module)
            elif arm == "naive":
                pl_module.penalise_by_hooks()
            self.blocks.append([])
        self._start = self._clock()

    def on_before_backward(self, *args: Any) -> None:
        self.psp.on_before_backward(*args)

    def on_after_backward(self, *args: Any) -> None:
        self.psp.on_after_backward(*args)

    def on_train_batch_end(self, *args: Any) -> None:
        self.psp.on_train_batch_end(*args)


def fit(
    options: argparse.Namespace, name: str, callbacks: list[Callback], steps: int, arm: str = "", tiny: bool = False
) -> None:
    """Trains one of the models for some steps on one random batch."""
    torch.manual_seed(0)
    model = MODELS[name]
    size = model.smallest_size if tiny else model.size
    batch_size = 2 if tiny else options.batch_size or model.batch_size
    inputs, labels = model.batch(size, batch_size, options.device)
    network = model.make(size)
    if options.channels_last:
        network = network.to(memory_format=torch.channels_last)
        inputs = inputs.to(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs
    module = Classifier(network, options.logged)
    if arm == "naive":
        module.penalise_by_hooks()
    if options.compile:
        module.network = torch.compile(network)
    trainer = Trainer(
        max_steps=steps,
        callbacks=[*callbacks, PSPCallback(lam=LAM)] if arm == "callback" else callbacks,
        accelerator=options.device,
        devices=1,
        precision=options.precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([(inputs, labels)] * steps, batch_size=None))


def time_blocks(options: argparse.Namespace, name: str, arms: tuple[str, ...], tiny: bool) -> dict[str, list[float]]:
    """For each arm the time of a step in each of its blocks, in seconds: the median, on tiny data the least."""
    steps = len(arms) * BLOCK * (options.pairs + 1) + 1
    with tqdm(total=steps, desc=name, leave=False, disable=None) as progress:
        alternate = Alternate(arms, progress, time.process_time if tiny else time.perf_counter)
        fit(options, name, [alternate], steps, tiny=tiny)
    typical: Callable[[list[float]], float] = min if tiny else statistics.median
    times = [typical(block[NOT_COUNTED:]) for block in alternate.blocks if len(block) == BLOCK]
    count = len(arms)
    return {arm: times[count + index :: count] for index, arm in enumerate(arms)}  # the first round warms up


def quartiles(values: list[float]) -> list[float]:
    """The three quartiles."""
    return statistics.quantiles(values, n=4) if len(values) > 1 else 3 * values


def peak_memory(options: argparse.Namespace, name: str, arm: str) -> float:
    """Peak memory in MiB of a process that trains, above the one that has loaded."""
    command = [sys.executable, __file__, "--memory-of", arm, "--models", name, "--device", options.device]
    command += ["--precision", options.precision, "--batch-size", str(options.batch_size)]
    command += ["--channels-last"] * options.channels_last + ["--compile"] * options.compile
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def measure_memory(options: argparse.Namespace, name: str) -> float:
    """Peak memory of a few training steps in this process, in MiB."""
    before = process_memory("VmRSS")
    fit(options, name, [], 3, options.memory_of)
    if options.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return process_memory("VmHWM") - before


def process_memory(field: str) -> float:
    """The resident memory of this process (VmRSS) or its peak (VmHWM) in MiB, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 2**10 for line in lines if line.startswith(f"{field}:"))


def print_ratios(options: argparse.Namespace) -> None:
    """Prints a line a model: the ratios of time and memory."""
    # Hooks that come and go would have a compiled network compiled anew in every block.
    arms = ("none", "callback") if options.compile else ("none", "callback", "naive")
    title = f"{'model':<14}{'step (ms)':>10}{'memory (MiB)':>14}"
    print(title + "".join(f"{arm + ' time':>15}{'quartiles':>14}{'memory':>8}" for arm in arms[1:]))
    for name in options.models:
        times = time_blocks(options, name, arms, tiny=False)
        memory = {arm: peak_memory(options, name, arm) for arm in arms}
        line = f"{name:<14}{1e3 * statistics.median(times['none']):>10.1f}{memory['none']:>14.0f}"
        for arm in arms[1:]:
            first, median, third = quartiles([a / b for a, b in zip(times[arm], times["none"], strict=True)])
            line += f"{median:>15.3f}{f'{first:.3f}-{third:.3f}':>14}{memory[arm] / memory['none']:>8.3f}"
        print(line, flush=True)


def print_python(options: argparse.Namespace) -> None:
    """Prints what the callback adds to a step of a batch of two of the smallest inputs, where kernels cost little."""
    print_title("callback adds (ms)")
    for name in options.models:
        times = time_blocks(options, name, ("none", "callback"), tiny=True)
        print_added(name, times["none"], times["callback"])


class _Idle(TorchFunctionMode):
    """Is told of every function and hands it on."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextmanager
def idle_watch(network: nn.Module) -> Iterator[None]:
    """Has functions and modules tell a mode and hooks that do nothing."""
    with ExitStack() as stack:
        for register in (register_module_forward_pre_hook, register_module_forward_hook):
            stack.callback(register(lambda *args: None).remove)
        stack.enter_context(_Idle())
        yield


def print_record(options: argparse.Namespace) -> None:
    """Prints what `record_potentials` adds to a forward pass of a batch of two of the smallest inputs.

    Beside it is what a watch adds that does nothing.
    """
    print_title("record adds (ms)")
    watches = {"": nullcontext, ", record": record_potentials, ", idle": idle_watch}
    for name in options.models:
        torch.manual_seed(0)
        model = MODELS[name]
        network = model.make(model.smallest_size).to(options.device)
        inputs, _ = model.batch(model.smallest_size, 2, options.device)
        times: dict[str, list[float]] = {label: [] for label in watches}
        for _ in range(options.pairs * BLOCK):
            for label, watch in watches.items():
                start = time.process_time()
                with watch(network):
                    network(inputs)
                times[label].append(time.process_time() - start)
        blocks = range(BLOCK, options.pairs * BLOCK, BLOCK)  # the first one warms up
        least = {label: [min(found[at : at + BLOCK]) for at in blocks] for label, found in times.items()}
        for label in (", record", ", idle"):
            print_added(name + label, least[""], least[label])


class StepTimes(Callback):
    """Takes the processor time of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        self._start = time.process_time()

    def on_train_batch_end(self, *args: Any) -> None:
        self.seconds.append(time.process_time() - self._start)


def print_auto(options: argparse.Namespace) -> None:
    """Prints the ratio of a step that measures λ to the others, and what that makes of the mean step."""
    print(f"{'model':<14}{'step (ms)':>10}{'measuring step':>16}{'quartiles':>16}{'mean step':>11}")
    for name in options.models:
        times = StepTimes()
        fit(options, name, [PSPCallback(lam="auto"), times], EVERY * (options.pairs + 1))
        rounds = [
            times.seconds[at : at + EVERY] for at in range(EVERY, len(times.seconds), EVERY)
        ]  # the first warms up
        ratios = [measuring / statistics.median(others) for measuring, *others in rounds]
        first, median, third = quartiles(ratios)
        step = 1e3 * statistics.median(second for _, *others in rounds for second in others)
        spread, mean = f"{first:.2f}-{third:.2f}", 1 + (median - 1) / EVERY
        print(f"{name:<14}{step:>10.1f}{median:>16.2f}{spread:>16}{mean:>11.3f}", flush=True)


def print_title(added: str) -> None:
    """Prints the head of the table of what is added."""
    print(f"{'model':<18}{'step (ms)':>10}{added:>20}{'over all steps':>16}{'quartiles':>18}")


def print_added(name: str, without: list[float], with_it: list[float]) -> None:
    """Prints what is added: the median over rounds, the difference of the fastest of all steps, the quartiles."""
    first, median, third = quartiles([1e3 * (b - a) for a, b in zip(without, with_it, strict=True)])
    least = 1e3 * (min(with_it) - min(without))
    step = 1e3 * min(without)
    print(f"{name:<18}{step:>10.2f}{median:>20.3f}{least:>16.3f}{f'{first:.3f} to {third:.3f}':>18}", flush=True)


class Profiled(Callback):
    """Runs a profiler over the steps behind the first."""

    def __init__(self, profiler: cProfile.Profile | profile) -> None:
        self._profiler = profiler

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == NOT_COUNTED:
            self._profiler.__enter__()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._profiler.__exit__(None, None, None)


def print_profile(options: argparse.Namespace) -> None:
    """Prints where the callback's Python spends its time, and which kernels it adds."""
    steps = NOT_COUNTED + PROFILED_STEPS
    for name in options.models:
        python = cProfile.Profile()
        fit(options, name, [Profiled(python)], steps, "callback")
        folder = str(Path(lightning_psp.__file__).parent)
        entries = pstats.Stats(python).stats.items()  # type: ignore[attr-defined]
        own = {key: entry for key, entry in entries if key[0].startswith(folder)}
        total = sum(entry[2] for entry in own.values())
        print(f"{name}: own time of lightning_psp's functions {1e3 * total / PROFILED_STEPS:.3f} ms a step, profiled")
        for (file, line, function), (_, calls, seconds, *_) in sorted(own.items(), key=lambda item: -item[1][2])[:12]:
            where = f"{Path(file).name}:{line} {function}"
            print(f"  {where:<50}{1e3 * seconds / PROFILED_STEPS:>8.3f} ms{calls / PROFILED_STEPS:>10.1f} calls")
        added, with_it = count_kernels(options, name, "callback")
        plain, without = count_kernels(options, name, "none")
        step = f"{1e3 * without / PROFILED_STEPS:.2f} → {1e3 * with_it / PROFILED_STEPS:.2f} ms a step"
        print(f"  kernels: {step}, {plain.total() / PROFILED_STEPS:.1f} → {added.total() / PROFILED_STEPS:.1f} of them")
        added.subtract(plain)
        for kernel, count in sorted(added.items(), key=lambda item: -abs(item[1]))[:12]:
            if count:
                print(f"  {kernel[:60]:<60}{count / PROFILED_STEPS:>+10.1f}", flush=True)


def count_kernels(options: argparse.Namespace, name: str, arm: str) -> tuple[Counter[str], float]:
    """The kernels of some steps, those of the GPU or torch's operators on a CPU, and the time that they take."""
    is_cuda = options.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        profiler = profile(activities=activities)
        fit(options, name, [Profiled(profiler)], NOT_COUNTED + PROFILED_STEPS, arm)
    counts: Counter[str] = Counter()
    microseconds = 0.0
    for event in profiler.events():
        is_mark = getattr(event, "is_user_annotation", False)  # over several kernels
        if event.device_type == DeviceType.CUDA and not is_mark if is_cuda else event.name.startswith("aten::"):
            counts[event.name] += 1
            microseconds += event.time_range.elapsed_us() if is_cuda else event.self_cpu_time_total
    return counts, microseconds / 1e6


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(SMALL_MODELS))
    parser.add_argument("--pairs", type=int, default=12, help="rounds of blocks of steps")
    parser.add_argument("--batch-size", type=int, default=0, help="0: the model's own")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--logged", type=int, default=0, help="number of values that each step logs")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network; without the naive arm")
    parser.add_argument("--python", action="store_true", help="the callback's own time in a step on tiny data")
    parser.add_argument("--record", action="store_true", help="the time of record_potentials on tiny data")
    parser.add_argument("--auto", action="store_true", help="processor time of the steps that measure λ")
    parser.add_argument("--profile", action="store_true", help="where the callback's time goes, in a few steps")
    parser.add_argument("--memory-of", choices=["none", "callback", "naive"], help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Prints what the options ask for."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    options = parse()
    if options.python or options.record or options.auto:
        torch.set_num_threads(1)
    if options.memory_of:
        print(measure_memory(options, options.models[0]))
        return
    print(f"torch {torch.__version__}, {options.device}, {options.precision}, {torch.get_num_threads()} threads")
    if options.python:
        print_python(options)
    elif options.record:
        print_record(options)
    elif options.auto:
        print_auto(options)
    elif options.profile:
        print_profile(options)
    else:
        print_ratios(options)


if __name__ == "__main__":
    main()
