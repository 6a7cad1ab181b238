"""Error and ⟨z²⟩ against λ, for several schedules of λ.

    python examples/lambda_sweep.py [--lams λ ...] [--schedules NAME ...] [--epochs N] [--seeds N] [--output FOLDER]
    python examples/lambda_sweep.py --network LeNet300 --data FOLDER --lams 1e-4 1e-3 1e-2 1e-1 --epochs 20

By default a small LeNet learns scikit-learn's handwritten digits, which takes about three minutes and needs no
download; LeNet-5 and LeNet-300 learn MNIST. Errors are those on a validation set after the last epoch: the digits'
own, or 10,000 of MNIST's training images. Each λ and schedule is trained with several seeds; what is done is skipped
when the same sweep is called again.

The learning rate is constant unless `--milestones` names the epochs after which it is divided by ten; the schedule
`learning_rate`, which follows it, differs from a constant λ only then.
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from tqdm import tqdm

from lightning_psp import PSPCallback
from lightning_psp.plotting.style import label_plainly, tidy
from lightning_psp.schedules import SCHEDULES
from support.classifier import Classifier
from support.data import Digits
from support.images import MNIST
from support.models import DigitsLeNet
from support.networks import LeNet5, LeNet300
from support.resumable import PROGRESS_FORMAT, silence_lightning, train_once, write_json
from support.tables import markdown_table, mean_and_deviation

HELD_OUT = 10_000
NETWORKS = {"DigitsLeNet": DigitsLeNet, "LeNet5": LeNet5, "LeNet300": LeNet300}
TITLES = {"DigitsLeNet": "digits", "LeNet5": "LeNet-5 on MNIST", "LeNet300": "LeNet-300 on MNIST"}
STYLES = {
    "constant": {"color": "#D55E00", "linestyle": "-", "marker": "o"},
    "warmup": {"color": "#0072B2", "linestyle": "--", "marker": "s"},
    "linear": {"color": "#009E73", "linestyle": "-.", "marker": "^"},
    "cosine": {"color": "#CC79A7", "linestyle": ":", "marker": "D"},
    "learning_rate": {"color": "#E69F00", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "v"},
}


@dataclass(frozen=True)
class Training:
    """What tells one training from the others."""

    network: str
    lam: float
    schedule: str
    seed: int
    epochs: int
    milestones: list[int]

    @property
    def file(self) -> str:
        """Name of the result's file."""
        drops = "".join(f"_drop{milestone}" for milestone in self.milestones)
        return f"{self.network}_{self.epochs}epochs{drops}_{self.schedule}_{self.lam:g}_seed{self.seed}.json"


def trainings(options: argparse.Namespace) -> list[Training]:
    """All trainings of the sweep; λ = 0 has one schedule, for all are the same there."""
    choices = [(0.0, "constant"), *((lam, schedule) for schedule in options.schedules for lam in options.lams)]
    return [
        Training(options.network, lam, schedule, seed, options.epochs, options.milestones)
        for lam, schedule in choices
        for seed in range(options.seeds)
    ]


def run(training: Training, options: argparse.Namespace, bar: tqdm) -> dict[str, Any]:
    """Train, or read what was trained before."""
    bar.set_description(f"{training.schedule}, λ = {training.lam:g}")

    def make() -> tuple[LightningModule, LightningDataModule, list[Callback]]:
        module = Classifier(NETWORKS[training.network](), milestones=training.milestones)
        if training.network == "DigitsLeNet":
            data: LightningDataModule = Digits()
        else:
            data = MNIST(options.data, download=options.download, held_out=HELD_OUT)
        return module, data, [PSPCallback(lam=training.lam, schedule=training.schedule)]

    path = options.output / "trainings" / training.file
    return train_once(path, asdict(training), make, bar=bar, accelerator=options.accelerator)


def summarise(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each schedule and λ the values after the last epoch, one a seed."""
    entries: dict[tuple[str, float], dict[str, Any]] = {}
    for result in results:
        schedule, lam = result["configuration"]["schedule"], result["configuration"]["lam"]
        empty = {"schedule": schedule, "lam": lam, "error": [], "loss": [], "z2": []}
        entry = entries.setdefault((schedule, lam), empty)
        for name in ("error", "loss", "z2"):
            entry[name].append(result["epochs"][-1][name])
    return list(entries.values())


def sweep_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Error, cross-entropy and ⟨z²⟩ for each schedule and λ."""
    rows = [
        [
            "no penalty" if entry["lam"] == 0 else entry["schedule"],
            f"{entry['lam']:g}",
            mean_and_deviation(entry["error"]),
            mean_and_deviation(entry["loss"], digits=3),
            mean_and_deviation(entry["z2"]),
        ]
        for entry in entries
    ]
    return markdown_table(["schedule", "λ", "validation error (%)", "validation loss", "⟨z²⟩"], rows)


def plot_sweep(entries: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draw error and ⟨z²⟩ against λ side by side, one line a schedule, and save the picture."""
    figure = Figure(figsize=(10, 4.4), dpi=150, layout="constrained")
    error_axes, z2_axes = figure.subplots(1, 2)
    schedules = defaultdict(list)
    for entry in entries:
        if entry["lam"] > 0:
            schedules[entry["schedule"]].append(entry)
    (unpenalised,) = (entry for entry in entries if entry["lam"] == 0)
    lams = sorted({entry["lam"] for entry in entries if entry["lam"] > 0})
    for axes, name in ((error_axes, "error"), (z2_axes, "z2")):
        axes.axhline(np.mean(unpenalised[name]), color="#555555", linewidth=1.2, label="no penalty")
        for place, (schedule, of_schedule) in enumerate(schedules.items()):
            # Side by side, for the bars of one λ would hide one another.
            shift = 1.07 ** (place - (len(schedules) - 1) / 2)
            _draw_line(axes, sorted(of_schedule, key=lambda entry: entry["lam"]), name, schedule, shift)
        axes.set_xscale("log")
        axes.set_xlabel("λ (log scale)")
        axes.set_xticks(lams, [f"{lam:g}" for lam in lams])
        axes.xaxis.set_minor_locator(NullLocator())
        tidy(axes)
    error_axes.set_title(f"Validation error, {title}", fontweight="bold")
    error_axes.set_ylabel("wrongly classified (%)")
    z2_axes.set_yscale("log")
    label_plainly(z2_axes.yaxis)
    z2_axes.set_title("Size of the potentials", fontweight="bold")
    z2_axes.set_ylabel("mean squared potential ⟨z²⟩ (log scale)")
    handles, labels = error_axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, handlelength=3)
    if (seeds := len(unpenalised["error"])) > 1:
        caption = f"After the last epoch. Lines: mean of {seeds} trainings; bars: lowest to highest of them."
        figure.supxlabel(caption, fontsize=9, color="#555555")
    figure.savefig(path)


def _draw_line(axes: Axes, entries: Sequence[Mapping[str, Any]], name: str, schedule: str, shift: float) -> None:
    """Draw the mean over the seeds against λ, with a bar from the lowest of them to the highest."""
    lams = [shift * entry["lam"] for entry in entries]
    means = np.array([np.mean(entry[name]) for entry in entries])
    lowest, highest = (np.array([limit(entry[name]) for entry in entries]) for limit in (min, max))
    bars = {"yerr": (means - lowest, highest - means), "elinewidth": 1, "capsize": 2}
    axes.errorbar(lams, means, label=schedule, linewidth=1.6, markersize=5, **bars, **STYLES[schedule])


def positive(text: str) -> float:
    """Read a value of λ; 0, no penalty, is always among the trainings."""
    lam = float(text)
    if not 0 < lam < float("inf"):
        raise argparse.ArgumentTypeError(f"expected λ above 0, beside which 0 is trained anyway, but got {text}")
    return lam


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Draw error and ⟨z²⟩ against λ, for several schedules of λ.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--network", choices=NETWORKS, default="DigitsLeNet", help="DigitsLeNet learns the digits, the others MNIST"
    )
    parser.add_argument("--data", type=Path, help="folder of MNIST, as torchvision stores it")
    parser.add_argument("--download", action="store_true", help="download MNIST where it is not there")
    parser.add_argument("--lams", type=positive, nargs="+", default=[0.01, 0.1, 0.3, 1.0, 3.0], help="values of λ")
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=["constant", "warmup", "linear", "cosine"])
    parser.add_argument("--epochs", type=int, default=30, help="epochs of each training")
    parser.add_argument("--milestones", type=int, nargs="+", default=[], help="drops of the learning rate, in epochs")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each λ and schedule")
    parser.add_argument("--accelerator", default="cpu", help="accelerator of the Trainer")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "output" / "lambda_sweep", help="folder of the results"
    )
    options = parser.parse_args()
    if options.network != "DigitsLeNet" and options.data is None:
        parser.error(f"--network {options.network} learns MNIST and needs --data")
    if options.network == "DigitsLeNet" and options.data is not None:
        parser.error("--network DigitsLeNet learns the digits of scikit-learn and takes no --data")
    for name in ("lams", "schedules"):
        setattr(options, name, list(dict.fromkeys(getattr(options, name))))
    return options


def main() -> None:
    """Run all trainings behind one progress bar, then print the table and draw the picture."""
    options = parse_arguments()
    (options.output / "trainings").mkdir(parents=True, exist_ok=True)
    silence_lightning()
    torch.set_num_threads(1)  # sharing so small a network between cores costs more than it saves
    all_trainings = trainings(options)
    total = len(all_trainings) * options.epochs
    with tqdm(total=total, unit="epoch", bar_format=PROGRESS_FORMAT) as bar:
        results = [run(training, options, bar) for training in all_trainings]

    entries = summarise(results)
    settings = {"network": options.network, "epochs": options.epochs, "milestones": options.milestones}
    settings["versions"] = results[0]["versions"]
    write_json(options.output / f"{options.network}.json", {**settings, "entries": entries})
    table = sweep_table(entries)
    (options.output / f"{options.network}.md").write_text(table)
    plot_sweep(entries, TITLES[options.network], options.output / f"{options.network}.png")
    print(f"\n{table}\nTable, picture and JSON: {options.output}")


if __name__ == "__main__":
    main()
