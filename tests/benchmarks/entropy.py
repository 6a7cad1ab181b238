"""Cost of PSP-entropy: time, processor time and peak memory.

    python tests/benchmarks/entropy.py --data FOLDER

First order of the three hidden layers of a trained LeNet-5 on the MNIST test set, the model's forward pass included,
beside a loop over layers and classes with clamped probabilities; second order of all pairs of units of its first layer;
third order of a sample of sets; and how time grows with units, samples and classes. `--data` holds MNIST as torchvision
stores it, and `models/lenet5_mnist.pt`; without it, images are random and the network is untrained. Every measurement
runs in a process of its own, whose memory is counted above that of the loaded model and images; on a GPU all run in
one, and memory is the peak of PyTorch's allocator above what was there.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from mnist import LeNet5
from torch import Tensor, nn
from torchvision.datasets import MNIST
from tqdm import tqdm

from lightning_psp import record_potentials
from lightning_psp.functional import psp_entropy
from lightning_psp.metrics import PSPEntropy

HIDDEN = ("conv1", "conv2", "fc1")
CLASSES, BATCH = 10, 500
# Units, samples and classes of random potentials; each line changes one of them.
SIZES = (
    (2000, 5000, 10),
    (4000, 5000, 10),
    (8000, 5000, 10),
    (4000, 10_000, 10),
    (4000, 5000, 100),
    (4000, 5000, 1000),
)


def load(options: argparse.Namespace) -> tuple[nn.Module, Tensor, Tensor]:
    """The network, images and labels."""
    torch.manual_seed(0)
    model, weights = LeNet5(), options.data / "models" / "lenet5_mnist.pt"
    if weights.exists():
        model.load_state_dict(torch.load(weights, weights_only=True))
        data = MNIST(options.data, train=False)
        images, labels = ((data.data.float() / 255 - 0.1307) / 0.3081).unsqueeze(1), data.targets
    else:
        images, labels = torch.randn(10_000, 1, 28, 28), torch.randint(0, CLASSES, (10_000,))
    count = options.images
    return model.eval().to(options.device), images[:count].to(options.device), labels[:count].to(options.device)


def hidden_potentials(model: nn.Module, images: Tensor, labels: Tensor) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """The potentials of each batch and its labels."""
    for part, target in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        with torch.no_grad(), record_potentials(model, output=False) as potentials:
            model(part)
        yield potentials, target


def entropy(model: nn.Module, images: Tensor, labels: Tensor, layers: tuple[str, ...], **settings: int) -> list[float]:
    """PSP-entropy of some layers."""
    metrics = {layer: PSPEntropy(CLASSES, **settings).to(images.device) for layer in layers}
    for potentials, target in hidden_potentials(model, images, labels):
        for layer, metric in metrics.items():
            metric.update(potentials[layer], target)
    return [metric.estimate().value for metric in metrics.values()]


def forward(model: nn.Module, images: Tensor) -> list[float]:
    """The network alone."""
    with torch.no_grad():
        for part in images.split(BATCH):
            model(part)
    return []


def loops(model: nn.Module, images: Tensor, labels: Tensor) -> list[float]:
    """One pass over the data for each layer, a loop over classes for each batch, probabilities from 1e-4 to 0.9999."""
    values = []
    for layer in HIDDEN:
        seen: list[Tensor] = []
        hook = model.get_submodule(layer).register_forward_hook(lambda *call, seen=seen: seen.append(call[-1]))
        active, samples = CLASSES * [0], CLASSES * [0]
        try:
            for part, target in zip(images.split(BATCH), labels.split(BATCH), strict=True):
                with torch.no_grad():
                    model(part)
                states = (seen.pop() > 0).float().flatten(1)
                for label in range(CLASSES):
                    active[label] = active[label] + states[target == label].sum(0)
                    samples[label] += int((target == label).sum())
        finally:
            hook.remove()
        value = torch.zeros(())
        for on, count in zip(active, samples, strict=True):
            p = (on / count).clamp(1e-4, 0.9999)
            value = value + (-p * p.log2() - (1 - p) * (1 - p).log2()).mean().cpu()
        values.append(value.item())
    return values


def measure(options: argparse.Namespace) -> dict[str, object]:
    """One measurement in this process."""
    torch.set_num_threads(options.threads)
    model, images, labels = load(options)
    few = images[: options.loop_images], labels[: options.loop_images]
    units, samples, classes = options.size
    runs: dict[str, Callable[[], list[float]]] = {
        "forward": lambda: forward(model, images),
        "first": lambda: entropy(model, images, labels, HIDDEN),
        "loops": lambda: loops(model, *few),
        "first of as many": lambda: entropy(model, *few, HIDDEN),
        "second": lambda: entropy(model, images, labels, HIDDEN[:1], order=2),
        "third": lambda: entropy(model, images, labels, HIDDEN[:1], order=3),
    }
    if options.part.startswith("random"):
        z, target = torch.randn(samples, units), torch.randint(0, classes, (samples,))
        order = int(options.part.split()[1])
        z, target = z.to(options.device), target.to(options.device)
        target[:classes] = torch.arange(classes)
        runs[options.part] = lambda: [psp_entropy(z, target, classes, order).item()]
    forward(model, images[:BATCH])  # the first call of a kernel is slow
    if options.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        memory = torch.cuda.memory_allocated() / 2**20
    else:
        memory = process_memory("VmRSS")
    wall, processor = time.perf_counter(), time.process_time()
    values = runs[options.part]()
    if options.device == "cuda":
        torch.cuda.synchronize()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = torch.cuda.max_memory_allocated() / 2**20 if options.device == "cuda" else process_memory("VmHWM")
    return {"seconds": wall, "processor": processor, "memory": peak - memory, "values": values}


def process_memory(field: str) -> float:
    """The resident memory of this process (VmRSS) or its peak (VmHWM) in MiB, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 2**10 for line in lines if line.startswith(f"{field}:"))


def measured(options: argparse.Namespace, part: str, size: tuple[int, int, int] = SIZES[0]) -> dict[str, object]:
    """The repetition that took the least wall time."""
    if options.device == "cuda":  # the allocator's peak needs no process of its own
        own = argparse.Namespace(**{**vars(options), "part": part, "size": size})
        return min((measure(own) for _ in range(options.repeat)), key=lambda result: result["seconds"])
    command = [sys.executable, __file__, "--part", part, "--data", str(options.data), "--device", options.device]
    command += ["--images", str(options.images), "--loop-images", str(options.loop_images)]
    command += ["--threads", str(options.threads), "--size", *map(str, size)]
    runs = [subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True) for _ in range(options.repeat)]
    return min((json.loads(run.stdout) for run in runs), key=lambda result: result["seconds"])


def line(label: str, result: dict[str, object]) -> str:
    """A line of a table."""
    values = "".join(f"{value:>10.4f}" for value in result["values"])
    return f"{label:<44}{result['seconds']:>9.2f}{result['processor']:>9.2f}{result['memory']:>9.0f}{values}"


def print_tables(options: argparse.Namespace) -> None:
    """Prints a line a measurement."""
    if not (options.data / "models" / "lenet5_mnist.pt").exists():
        print(f"No trained network in {options.data}: an untrained one on random images.")
    count, few = options.images, min(options.images, options.loop_images)
    parts = {
        "forward": f"forward pass, {count} images",
        "first": f"first order, {', '.join(HIDDEN)}",
        "first of as many": f"first order, {few} images",
        "loops": f"loops over layers and classes, {few} images",
        "second": f"second order, {HIDDEN[0]}, all {math.comb(11520, 2):,} pairs",
        "third": f"third order, {HIDDEN[0]}, 10000 sets",
    }
    print(f"{options.device}, {options.threads} threads")
    with tqdm(total=len(parts) + 2 * len(SIZES), leave=False) as progress:
        progress.write(f"{'':<44}{'time (s)':>9}{'CPU (s)':>9}{'MiB':>9}   entropy of each layer (bits)")
        results = {}
        for part, label in parts.items():
            results[part] = measured(options, part)
            progress.write(line(label, results[part]))
            if part == "loops":
                whole = results["loops"]["seconds"] * count / few
                progress.write(f"{f'  the same for {count} images, scaled':<44}{whole:>9.2f}")
            progress.update()
        progress.write(
            f"\n{'units':>7}{'samples':>9}{'classes':>9}{'order 1 (s)':>13}{'CPU':>8}{'order 2 (s)':>13}{'CPU':>8}"
        )
        for size in SIZES:
            row = "".join(f"{number:>{width}}" for number, width in zip(size, (7, 9, 9), strict=True))
            for order in (1, 2):
                result = measured(options, f"random {order}", size)
                row += f"{result['seconds']:>13.2f}{result['processor']:>8.2f}"
                progress.update()
            progress.write(row)


def main() -> None:
    """Measures, or prints the measurements of other processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2].parent / "shared" / "data")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--loop-images", type=int, default=2000, help="images of the loop over layers and classes")
    parser.add_argument("--repeat", type=int, default=1, help="repetitions, of which the fastest counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="more wait where cores are busy")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, nargs=3, default=SIZES[0], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(measure(options)))
    else:
        print_tables(options)


if __name__ == "__main__":
    main()
