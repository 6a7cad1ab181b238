"""Where PSP helps, and where it does not: six small tasks, five ways to regularise.

    python examples/where_psp_helps.py [--tasks NAME ...] [--seeds N] [--output FOLDER] [--quick]

An MLP on a table, an MLP, a CNN without and with batch norm, an LSTM and a transformer on handwritten digits: each is
trained without regularisation, with weight decay, with dropout, with PSP, and with PSP beside weight decay. Each
strength is one of three, chosen by the error on a validation set over all seeds; the tables show error, cross-entropy
and calibration on a test set, and all three for each λ of PSP. Each seed has a split of its own. Nothing is
downloaded: the data comes with scikit-learn. What is done is skipped when the script is called again.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torchmetrics.classification import MulticlassCalibrationError
from tqdm import tqdm

from lightning_psp import PSPCallback
from support.classifier import evaluate
from support.options import positive_integer
from support.resumable import PROGRESS_FORMAT, silence_lightning, train_once, write_json
from support.small_tasks import TASKS
from support.tables import markdown_table, mean_and_deviation

EPOCHS = 40
DROPOUTS = (0.1, 0.3, 0.5)
LAMS = (0.01, 0.1, 1.0)
TECHNIQUES = {
    "none": "none",
    "weight_decay": "weight decay",
    "dropout": "dropout",
    "psp": "PSP",
    "both": "PSP, weight decay",
}
MEASURES = {"test_error": ("Test error (%)", 2), "test_loss": ("Test loss", 3), "ece": ("Calibration error (%)", 2)}


@dataclass(frozen=True)
class Training:
    """What tells one training from the others."""

    task: str
    technique: str
    weight_decay: float
    dropout: float
    lam: float
    seed: int
    epochs: int

    @property
    def strength(self) -> str:
        """What was chosen, as the table shows it."""
        shown = {"weight decay": self.weight_decay, "p": self.dropout, "λ": self.lam}
        return ", ".join(f"{name} {value:g}" for name, value in shown.items() if value) or "–"

    @property
    def file(self) -> str:
        """Name of the result's file."""
        strengths = f"wd{self.weight_decay:g}_p{self.dropout:g}_lam{self.lam:g}"
        return f"{self.task}_{self.technique}_{strengths}_seed{self.seed}.json"


def candidates(start: Training, technique: str, chosen: Mapping[str, Training], quick: bool) -> list[Training]:
    """The strengths that are tried of one technique; both together keep the weight decay that was chosen alone."""
    start = replace(start, technique=technique)
    if technique == "both":
        start = replace(start, weight_decay=chosen["weight_decay"].weight_decay)
    grids = {
        "none": [start],
        "weight_decay": [replace(start, weight_decay=decay) for decay in TASKS[start.task].weight_decays],
        "dropout": [replace(start, dropout=share) for share in DROPOUTS],
        "psp": [replace(start, lam=lam) for lam in LAMS],
    }
    grid = grids["psp" if technique == "both" else technique]
    return grid[:1] if quick else grid


def run(training: Training, folder: Path, bar: tqdm) -> dict[str, Any]:
    """Train, or read what was trained before."""
    task = TASKS[training.task]
    bar.set_description(f"{training.task}, {training.technique} {training.strength}, seed {training.seed}")

    def make() -> tuple[LightningModule, LightningDataModule, list[Callback]]:
        callbacks = [PSPCallback(lam=training.lam, entropy=(), log_layers=False)] if training.lam else []
        return task.module(task.network(training.dropout), training.weight_decay), task.data(training.seed), callbacks

    def measure(module: LightningModule, data: LightningDataModule) -> dict[str, Any]:
        batches = data.test_dataloader()
        return {**evaluate(module, batches), "ece": calibration_error(module, batches, task.classes)}

    return train_once(folder / training.file, asdict(training), make, bar=bar, accelerator="cpu", measure=measure)


def calibration_error(network: torch.nn.Module, batches: Iterable[Any], classes: int) -> float:
    """Compute the expected calibration error in per cent: how far confidence is from the share of right answers.

    In 15 bins of equal width, as by Guo et al. (2017), "On calibration of modern neural networks", Eq. 3.
    """
    error = MulticlassCalibrationError(classes, n_bins=15, norm="l1")
    network.eval()
    with torch.no_grad():
        for inputs, labels in batches:
            error.update(network(inputs).softmax(dim=1), labels)
    return 100 * error.compute().item()


def tune(task: str, options: argparse.Namespace, bar: tqdm) -> list[dict[str, Any]]:
    """Train one task with all techniques and strengths; return a row for each, which says whether it was chosen."""
    start = Training(task, "none", 0.0, 0.0, 0.0, 0, options.epochs)
    chosen: dict[str, Training] = {}
    rows = []
    for technique in TECHNIQUES:
        tried = [
            (candidate, [run(replace(candidate, seed=seed), options.output, bar) for seed in range(options.seeds)])
            for candidate in candidates(start, technique, chosen, options.quick)
        ]
        # Errors of few images are often equal: the loss decides then.
        chosen[technique], _ = min(tried, key=lambda pair: (last(pair[1], "error"), last(pair[1], "loss")))
        rows += [
            {
                "task": task,
                "technique": technique,
                "strength": candidate.strength,
                "lam": candidate.lam,
                "chosen": candidate == chosen[technique],
                **{name: [result[name] for result in results] for name in MEASURES},
            }
            for candidate, results in tried
        ]
    return rows


def last(results: Sequence[Mapping[str, Any]], name: str) -> float:
    """Mean over the seeds of a value of the validation set, after the last epoch."""
    return mean(result["epochs"][-1][name] for result in results)


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table for each measure, a line a task and the lowest mean in bold, one of the strengths, and one of λ."""
    tasks = dict.fromkeys(row["task"] for row in rows)
    of = {(row["task"], row["technique"]): row for row in rows if row["chosen"]}
    parts = []
    for name, (title, digits) in MEASURES.items():
        lines = []
        for task in tasks:
            values = [of[task, technique][name] for technique in TECHNIQUES]
            lowest = min(map(mean, values))
            cells = [mean_and_deviation(each, digits) for each in values]
            bold = [f"**{cell}**" if mean(each) == lowest else cell for cell, each in zip(cells, values, strict=True)]
            lines.append([TASKS[task].title, *bold])
        parts.append(f"{title}:\n\n{markdown_table(['task', *TECHNIQUES.values()], lines)}")
    strengths = [
        [TASKS[task].title, *(of[task, technique]["strength"] for technique in TECHNIQUES if technique != "none")]
        for task in tasks
    ]
    header = ["task", *(label for technique, label in TECHNIQUES.items() if technique != "none")]
    parts.append(f"Strengths chosen on the validation set:\n\n{markdown_table(header, strengths)}")
    parts.append(f"PSP by λ, test error (%) · test loss · calibration error (%):\n\n{lam_table(rows)}")
    return "\n".join(parts)


def lam_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The three measures of PSP with each λ, a line a task: what less error costs."""
    cells: dict[str, list[str]] = {}
    lams = []
    for row in rows:
        if row["technique"] in ("none", "psp"):
            lams.append(row["lam"])
            means = [f"{mean(row[name]):.{digits}f}" for name, (_, digits) in MEASURES.items()]
            cells.setdefault(row["task"], []).append(" · ".join(means))
    header = ["task", *("none" if lam == 0 else f"λ = {lam:g}" for lam in dict.fromkeys(lams))]
    return markdown_table(header, [[TASKS[task].title, *line] for task, line in cells.items()])


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Compare no regularisation, weight decay, dropout and PSP on small tasks.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="the tasks, in this order")
    parser.add_argument("--seeds", type=positive_integer, default=3, help="splits and trainings of each strength")
    parser.add_argument("--epochs", type=positive_integer, default=EPOCHS, help="epochs of each training")
    parser.add_argument("--quick", action="store_true", help="one strength of each technique, one seed, one epoch")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent / "output" / "where_psp_helps",
        help="folder of the results",
    )
    options = parser.parse_args()
    if options.quick:
        options.seeds = options.epochs = 1
        options.output = options.output / "quick"
    return options


def main() -> None:
    """Run all trainings behind one progress bar; tables and JSON are written anew after each task."""
    options = parse_arguments()
    options.output.mkdir(parents=True, exist_ok=True)
    silence_lightning()
    torch.set_num_threads(1)  # sharing so small a network between cores costs more than it saves
    strengths = len(TECHNIQUES) if options.quick else 1 + 3 * (len(TECHNIQUES) - 1)
    rows: list[dict[str, Any]] = []
    total = len(options.tasks) * strengths * options.seeds * options.epochs
    with tqdm(total=total, unit="epoch", bar_format=PROGRESS_FORMAT) as bar:
        for task in options.tasks:
            rows += tune(task, options, bar)
            settings = {"seeds": options.seeds, "epochs": options.epochs}
            write_json(options.output / "where_psp_helps.json", {**settings, "rows": rows})
            (options.output / "where_psp_helps.md").write_text(tables(rows))
    print(f"\n{tables(rows)}\nTables and JSON: {options.output}")


if __name__ == "__main__":
    main()
