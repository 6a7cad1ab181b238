"""The surroundings of a gradually pruned solution and of a one-shot one: Fig. 2 to 4 of the second paper.

    python examples/geometry_study.py --data FOLDER [--solutions FOLDER] [--task lenet5_mnist] ...
    python examples/geometry_study.py --small

Needs the trainings of `pruning_study.py`, from whose folder it reads the two solutions at the highest sparsity:
LOBSTER's, and the lottery ticket's that was trained with the same masks. Around them it computes loss, error, ⟨z²⟩ and
PSP-entropy over the plane through both and along the line between them, there with the second order, too, and the
largest eigenvalues and the trace of the Hessian at each. Every result is a file that is read again when it is there,
and an interrupted plane goes on point by point. `--small` does it for the digits, after `pruning_study.py --small`:
a minute.
"""

import argparse
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_psp import record_potentials
from lightning_psp.analysis import (
    HessianSpectrum,
    LossPlane,
    TraceEstimate,
    hessian_eigenvalues,
    hessian_trace,
    loss_plane,
)
from lightning_psp.metrics import MeanSquarePotential, PSPEntropy
from pruning_study import SMALL, TASKS, Task
from support.classifier import evaluate
from support.geometry_report import report
from support.images import ImageSets
from support.options import positive_integer
from support.resumable import keep_configuration, write_json

Batches = list[tuple[Tensor, Tensor]]
SOLUTIONS = ("gradual", "one-shot")
AnyResult = TypeVar("AnyResult", LossPlane, HessianSpectrum, TraceEstimate)


@dataclass(frozen=True)
class Solution:
    """A trained network's weights, and its masks."""

    weights: dict[str, Tensor]
    masks: dict[str, Tensor]
    sparsity: float
    digest: str  # of its file


def load_solutions(folder: Path, task: str) -> dict[str, Solution]:
    """Read LOBSTER's last level, and the lottery ticket trained with its masks."""
    study = folder / "pruning_study.json"
    rows = json.loads(study.read_text())["trainings"] if study.exists() else []
    rows = [row for row in rows if row["task"] == task and row["seed"] == 0]
    gradual = [row for row in rows if row["arm"] == "gradual" and not row["lam"]]
    tickets = [row for row in rows if row["arm"] == "lottery_ticket"]
    if not gradual or not tickets:
        call = "--small" if task in SMALL else f"--data FOLDER --tasks {task}"
        raise FileNotFoundError(
            f"Expected {study} to have networks of {task} that were pruned gradually and in one shot but it has none,"
            f" or is not there: run `pruning_study.py {call}`, or name its folder with `--solutions`."
        )
    level = max(row["level"] for row in tickets)
    files = {
        "gradual": folder / f"{task}_gradual_seed0" / f"level{len(gradual[0]['levels']) - 1:02}.pt",
        "one-shot": folder / f"{task}_lottery_ticket_level{level:02}_seed0" / "level00.pt",
    }
    return {name: read_solution(path) for name, path in files.items()}


def read_solution(path: Path) -> Solution:
    """Read the weights of a network that a classifier held."""
    stored = torch.load(path, weights_only=True, map_location="cpu")
    weights, masks = (
        {name.removeprefix("network."): each for name, each in stored[kind].items()} for kind in ("weights", "masks")
    )
    zeros = sum(int((~mask).sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
    return Solution(weights, masks, zeros, hashlib.sha256(path.read_bytes()).hexdigest())


def load_batches(task: Task, folder: Path, images: int, device: torch.device) -> dict[str, Batches]:
    """The first training images, and as many of the test images, in batches of 1,000."""
    data = task.data(folder)
    if isinstance(data, ImageSets):
        data.setup("fit")
    sets = {"train": data.train_set, "test": data.test_set}
    batches = {}
    for name, each in sets.items():
        inputs, labels = (tensor[:images].to(device) for tensor in each.tensors)
        parts = zip(inputs.split(1000), labels.split(1000), strict=True)
        batches[name] = [tuple(data.on_after_batch_transfer(part, 0)) for part in parts]
    return batches


def kept(kind: type[AnyResult], path: Path, compute: Callable[[], AnyResult]) -> AnyResult:
    """Read a result where its file is there, else compute and write it."""
    if path.exists():
        return kind.load(path)
    result = compute()
    result.save(path)
    return result


def measure(network: nn.Module, batches: Batches) -> dict[str, Any]:
    """Error, loss, and ⟨z²⟩ and PSP-entropy of both orders of each layer."""
    network.eval()
    z2: dict[str, MeanSquarePotential] = {}
    entropies: dict[int, dict[str, PSPEntropy]] = {1: {}, 2: {}}
    for images, labels in batches:
        with torch.no_grad(), record_potentials(network) as potentials:
            network(images)
        for layer, z in potentials.items():
            z2.setdefault(layer, MeanSquarePotential().to(z.device)).update(z)
            if layer not in potentials.outputs:
                for order, metrics in entropies.items():
                    metrics.setdefault(layer, PSPEntropy(10, order=order).to(z.device)).update(z, labels)
    return {
        **evaluate(network, batches),
        "z2": {layer: metric.compute().item() for layer, metric in z2.items()},
        "entropy": {layer: metric.compute().item() for layer, metric in entropies[1].items()},
        "entropy2": {layer: metric.compute().item() for layer, metric in entropies[2].items()},
    }


def study(options: argparse.Namespace, name: str, task: Task) -> None:
    """Compute what is not there yet, then write the report."""
    device = torch.device(options.device)
    folder: Path = options.results / name
    folder.mkdir(parents=True, exist_ok=True)
    solutions = load_solutions(options.solutions, name)
    configuration = {each: getattr(options, each) for each in ("images", "points", "eigenvalues")}
    if options.hessian_images:
        configuration["hessian_images"] = options.hessian_images
    digests = {label: solution.digest for label, solution in solutions.items()}
    keep_configuration(folder / "configuration.json", {**configuration, "solutions": digests})
    batches = load_batches(task, options.data, options.images, device)
    of_hessian = batches["train"]
    if options.hessian_images:
        of_hessian = load_batches(task, options.data, options.hessian_images, device)["train"]
    network = task.network().to(device)
    weights = [{key: value.to(device) for key, value in solutions[each].weights.items()} for each in SOLUTIONS]

    planes = {}
    shapes: dict[str, dict[str, Any]] = {
        "plane": {"size": (options.points, options.points)},
        "line": {"size": (options.points, 1), "measures": ("loss", "error", "z2", "entropy", "entropy2")},
    }
    for part, data in batches.items():
        for shape, arguments in shapes.items():
            path = folder / f"{shape}_{part}.pt"
            points = path.with_suffix(".part")
            compute = partial(loss_plane, network, *weights, data, **arguments, path=points)
            planes[f"{shape}_{part}"] = kept(LossPlane, path, compute)
            points.unlink(missing_ok=True)

    spectra, summary = {}, {}
    for label in SOLUTIONS:
        solution = solutions[label]
        network.load_state_dict(solution.weights)
        masks = {key: mask.to(device) for key, mask in solution.masks.items()}
        spectra[label] = kept(
            HessianSpectrum,
            folder / f"spectrum_{label}.pt",
            partial(hessian_eigenvalues, network, of_hessian, k=options.eigenvalues, masks=masks, tolerance=1e-2),
        )
        trace = kept(
            TraceEstimate,
            folder / f"trace_{label}.pt",
            partial(hessian_trace, network, of_hessian, masks=masks),
        )
        summary[label] = {
            "sparsity": solution.sparsity,
            "eigenvalues": spectra[label].values.tolist(),
            "trace": [trace.value, trace.standard_error],
            **measure(network, batches["test"]),
        }
    write_json(folder / "geometry_study.json", summary)
    number = sum(len(labels) for _, labels in of_hessian)
    report(task.title, planes, spectra, summary, folder, f"{number:,} training images")


def side(text: str) -> int:
    """Read a number of points, of which two are the solutions, from the command line."""
    number = int(text)
    if number < 7 or number % 6 != 1:
        raise argparse.ArgumentTypeError(
            f"expected 7, 13, 19, 25 or more in sixes, for the solutions to be among the points, but got {text}"
        )
    return number


def main() -> None:
    """Read the command line and run the study."""
    parser = argparse.ArgumentParser(
        description="Loss maps, Hessian spectrum, ⟨z²⟩ and entropy around two pruned solutions.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    output = Path(__file__).parent / "output"
    parser.add_argument("--data", type=Path, help="folder of the sets, as torchvision stores them")
    parser.add_argument("--solutions", type=Path, default=output / "pruning_study", help="results of pruning_study.py")
    parser.add_argument("--task", choices=TASKS, default="lenet5_mnist", help="whose solutions")
    parser.add_argument("--small", action="store_true", help="scikit-learn's digits instead, with fewer points")
    parser.add_argument("--images", type=positive_integer, default=10_000, help="images of each set")
    parser.add_argument("--hessian-images", type=positive_integer, help="of the Hessian; by default as many")
    parser.add_argument("--points", type=side, default=25, help="points of a side of the plane: 7, 13, 19, 25, …")
    parser.add_argument("--eigenvalues", type=positive_integer, default=10, help="how many, the largest")
    parser.add_argument("--device", default="cpu", help="device of the network")
    parser.add_argument("--results", type=Path, default=output / "geometry_study", help="folder of the results")
    options = parser.parse_args()
    if options.small:
        options.points = min(options.points, 13)
        study(options, "digits", SMALL["digits"])
    elif options.data is None:
        parser.error("the following arguments are required: --data, or --small")
    else:
        study(options, options.task, TASKS[options.task])


if __name__ == "__main__":
    main()
