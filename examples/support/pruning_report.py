"""Table and pictures of the pruning study."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_psp.plotting import plot_pruning
from support.tables import markdown_table, mean_and_deviation

LABELS = {
    "gradual": "LOBSTER",
    "lottery_ticket": "its masks, its initial weights",
    "random_initialisation": "its masks, other initial weights",
    "random_structure": "random masks",
    "one_shot": "masks of the dense network",
}
CAPTION = (
    "Test error in per cent, mean ± standard deviation over the trainings, at the weights with the lowest validation"
    " loss. LOBSTER: one training, from whose masks the others begin.\n\n"
)


def report(rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str], folder: Path) -> None:
    """Write ``<task>.md``, ``<task>_levels.md`` and ``<task>.png`` for each task.

    Args:
        rows: The trainings: their settings, and their levels.
        titles: Title of each task.
        folder: Where the files go.
    """
    for task, title in titles.items():
        trainings = [row for row in rows if row["task"] == task]
        if not any(row["arm"] == "gradual" for row in trainings):
            continue
        text = f"# {title}\n\n{CAPTION}{arms_table(trainings)}\n{gradual_table(trainings)}"
        (folder / f"{task}.md").write_text(text)
        levels = f"# {title}: LOBSTER at each of its sparsities\n\n{levels_table(trainings)}"
        (folder / f"{task}_levels.md").write_text(levels)
        print(text)
        figure, axes = plot_pruning(curves(trainings))
        axes.set_title(title, fontweight="bold")
        figure.savefig(folder / f"{task}.png", dpi=150)


def curves(trainings: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """For each arm, sparsity and test error of each training at each level."""
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for arm, label in LABELS.items():
        for row in trainings:
            if row["arm"] == arm and not row["lam"] and (arm != "gradual" or row["seed"] == 0):
                points[label] += [(level["sparsity"], level["test_error"]) for level in row["levels"]]
    return dict(points)


def arms_table(trainings: Sequence[Mapping[str, Any]]) -> str:
    """Errors of each arm at each sparsity; where no one-shot arm was trained, of LOBSTER at each of its own."""
    gradual = next((row for row in trainings if row["arm"] == "gradual" and row["seed"] == 0 and not row["lam"]), None)
    if gradual is None:
        return ""
    levels = sorted({row["level"] for row in trainings if row["arm"] == "one_shot"}) or range(len(gradual["levels"]))
    rows = []
    for level in levels:
        cells = [f"{100 * gradual['levels'][level]['sparsity']:.2f}", f"{gradual['levels'][level]['test_error']:.2f}"]
        for arm in list(LABELS)[1:]:
            errors = [row["levels"][0]["test_error"] for row in trainings if (row["arm"], row["level"]) == (arm, level)]
            cells.append(mean_and_deviation(errors) if errors else "–")
        rows.append(cells)
    return markdown_table(["pruned (%)", *LABELS.values()], rows)


def levels_table(trainings: Sequence[Mapping[str, Any]]) -> str:
    """Sparsity and test error of each gradual training at each level."""
    rows = [
        [_psp(row), str(row["seed"]), f"{100 * level['sparsity']:.2f}", f"{level['test_error']:.2f}"]
        for row in trainings
        if row["arm"] == "gradual"
        for level in row["levels"]
    ]
    return markdown_table(["PSP", "seed", "pruned (%)", "test error (%)"], rows)


def gradual_table(trainings: Sequence[Mapping[str, Any]]) -> str:
    """The gradual trainings: how far each came, and constant units at the end."""
    rows = []
    for row in trainings:
        if row["arm"] == "gradual":
            dense, last = row["levels"][0], row["levels"][-1]
            constant = sum(last["off"].values()) + sum(last["on"].values())
            rows.append(
                [
                    _psp(row),
                    str(row["seed"]),
                    f"{dense['test_error']:.2f}",
                    f"{100 * last['sparsity']:.2f}",
                    f"{last['test_error']:.2f}",
                    f"{constant} of {sum(last['units'].values())}",
                    f"{last['epoch'] + 1}" + ("" if row.get("ended", True) else ", not ended"),
                ]
            )
    header = ["PSP", "seed", "error, dense", "pruned (%)", "error, pruned", "constant units", "epochs"]
    return markdown_table(header, rows)


def _psp(row: Mapping[str, Any]) -> str:
    return f"λ = {row['lam']:g}" if row["lam"] else "none"
