"""Cost of the analysis of trained networks.

    python tests/benchmarks/analysis.py --data FOLDER plane
    python tests/benchmarks/analysis.py --data FOLDER hessian

`plane`: points of `loss_plane` through two LeNet-5 on 10,000 MNIST images, beside as many bare forward passes over the
same images; the memory that they take above that of the network and images; and forward passes of several points at
once by `torch.func.vmap`.

`hessian`: the largest eigenvalues of a LeNet-5 by `hessian_eigenvalues`, by curvlinops with SciPy and by
pytorch-hessian-eigenthings, with residuals of at most 1e-3 of the largest eigenvalue. Needs both libraries
(``pip install curvlinops-for-pytorch==3.0.1 hessian-eigenthings==1.0.0a5``).

`--data` holds MNIST as torchvision stores it, and `models/lenet5_mnist.pt`; without it,
images are random and the network is untrained.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from analysis_hessian import hessian
from entropy import load, process_memory
from timing import Batches, seconds
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lightning_psp.analysis import loss_plane

MEASURES = ("loss", "error", "z2", "entropy")


def forward(model: nn.Module, batches: Batches, passes: int) -> None:
    """The network alone, over and over."""
    with torch.no_grad():
        for _ in range(passes):
            for images, _ in batches:
                model(images)


def forward_at_once(model: nn.Module, batches: Batches, points: int) -> None:
    """A pass of the networks of several points at once."""
    weights = {name: torch.stack(points * [value]) for name, value in model.state_dict().items()}

    def call(state: dict[str, Tensor], images: Tensor) -> Tensor:
        return functional_call(model, state, (images,))

    with torch.no_grad():
        for images, _ in batches:
            vmap(call, in_dims=(0, None))(weights, images)


def other_solution(model: nn.Module) -> dict[str, Tensor]:
    """Weights some way off, which stand for a second solution."""
    torch.manual_seed(1)
    return {name: value + 0.02 * torch.randn_like(value) for name, value in model.state_dict().items()}


def plane(options: argparse.Namespace) -> None:
    """Prints a line a set of measures."""
    model, images, labels = load(options)
    batches = list(zip(images.split(options.batch), labels.split(options.batch), strict=True))
    first, second = dict(model.state_dict()), other_solution(model)
    side = options.side

    def points(measures: tuple[str, ...]) -> None:
        loss_plane(model, first, second, batches, measures=measures, size=(side, side))

    if options.device == "cuda":
        before = torch.cuda.memory_allocated() / 2**20
        points(MEASURES)
        memory = torch.cuda.max_memory_allocated() / 2**20 - before
    else:
        before = process_memory("VmRSS")
        points(MEASURES)
        memory = process_memory("VmHWM") - before
    works: dict[str, Callable[[], object]] = {
        "forward passes": lambda: forward(model, batches, side**2),
        "loss": lambda: points(MEASURES[:1]),
        "loss, error": lambda: points(MEASURES[:2]),
        "loss, error, ⟨z²⟩": lambda: points(MEASURES[:3]),
        "loss, error, ⟨z²⟩, entropy": lambda: points(MEASURES),
        "forward passes at once": lambda: forward_at_once(model, batches, side**2),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(options.rounds):  # one after another, for the machine may be busy
        for name, work in works.items():
            times[name].append(seconds(work, options.device))
    print(f"{options.device}, {options.threads} threads, {side**2} points, {options.images} images by {options.batch}")
    print(f"memory above network and images: {memory:.0f} MiB")
    print(f"{'a point':<30}{'time (s)':>10}{'ratio':>8}{'CPU (s)':>10}{'ratio':>8}")
    for name, found in times.items():
        row = f"{name:<30}"
        for kind in (0, 1):
            ratios = [own[kind] / bare[kind] for own, bare in zip(found, times["forward passes"], strict=True)]
            each = statistics.median(own[kind] for own in found) / side**2
            row += f"{each:>10.3f}{statistics.median(ratios):>8.2f}"
        print(row)


def main() -> None:
    """Runs one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2].parent / "shared" / "data")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="more wait where cores are busy")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("plane", help="loss_plane")
    command.add_argument("--side", type=int, default=5, help="points along x and along y")
    command.set_defaults(run=plane)
    command = commands.add_parser("hessian", help="hessian_eigenvalues")
    command.add_argument("--k", type=int, default=5, help="number of eigenvalues")
    command.set_defaults(run=hessian)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.run(options)


if __name__ == "__main__":
    main()
