"""Tables and a picture of the study of settings of λ."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lightning_psp.plotting.style import FAINT, styles, tidy
from support.lambda_tasks import TASKS
from support.tables import markdown_table, mean_and_deviation, mean_of_last

WAYS = {
    "lam": "λ",
    "start": "ρ at the start",
    "throughout": "ρ throughout",
    "layers": "ρ at the start, layers alike",
}
Entry = Mapping[str, Any]


def summarise(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each task, way and value what the trainings gave, one number a seed."""
    entries: dict[tuple[str, str, float], dict[str, Any]] = {}
    for result in results:
        configuration, epochs = result["configuration"], result["epochs"]
        key = configuration["task"], configuration["way"], configuration["value"]
        entry = entries.setdefault(key, dict(zip(("task", "way", "value"), key, strict=True)))
        found = {
            "validation_error": mean_of_last(result, "error"),
            "validation_loss": mean_of_last(result, "loss"),
            "test_error": result["test_error"],
            "test_loss": result["test_loss"],
            "seconds": sum(epoch["seconds"] for epoch in epochs),
        }
        if "lams" in result:
            found |= {"first_lam": result["lams"][0], "last_lam": result["lams"][-1], "measuring": result["measuring"]}
        for name, value in found.items():
            entry.setdefault(name, []).append(value)
    return list(entries.values())


def best(entries: Sequence[Entry], task: str, way: str) -> Entry:
    """The value of least validation error; of equals, which few images make frequent, that of least loss."""
    tried = [entry for entry in entries if (entry["task"], entry["way"]) == (task, way)]
    return min(tried, key=lambda entry: (mean(entry["validation_error"]), mean(entry["validation_loss"])))


def one_value(entries: Sequence[Entry], way: str) -> dict[str, Entry]:
    """The value that serves all tasks best, by task: of least mean validation error over that of each task's best λ."""
    tasks = list(dict.fromkeys(entry["task"] for entry in entries))
    tuned = {task: mean(best(entries, task, "lam")["validation_error"]) for task in tasks}
    of_way: dict[float, dict[str, Entry]] = {}
    for entry in entries:
        if entry["way"] == way:
            of_way.setdefault(entry["value"], {})[entry["task"]] = entry
    return min(
        of_way.values(),
        key=lambda found: mean(mean(found[task]["validation_error"]) / tuned[task] for task in tasks),
    )


def is_within_spread(entry: Entry, tuned: Entry) -> bool:
    """Whether the mean test error is at most one standard deviation over seeds above that of the tuned λ."""
    errors = tuned["test_error"]
    return mean(entry["test_error"]) <= mean(errors) + (stdev(errors) if len(errors) > 1 else 0.0)


def tables(entries: Sequence[Entry]) -> str:
    """The best of each task, one value for all of them, and what the shares amount to."""
    tasks = list(dict.fromkeys(entry["task"] for entry in entries))
    makers = (_tuned_table, _one_value_table, _difference_table, _lam_table)
    return "\n".join(make(entries, tasks) for make in makers)


def _tuned_table(entries: Sequence[Entry], tasks: Sequence[str]) -> str:
    rows = []
    for task in tasks:
        found = {way: best(entries, task, way) for way in ("none", *WAYS)}
        cells = [f"{mean_and_deviation(entry['test_error'])} ({entry['value']:g})" for entry in found.values()]
        rows.append([TASKS[task].title, mean_and_deviation(found["none"]["test_error"]), *cells[1:]])
    header = ["test error (%), tuned for each task", "none", *WAYS.values()]
    return f"{markdown_table(header, rows)}\nIn brackets the value of least validation error.\n"


def _one_value_table(entries: Sequence[Entry], tasks: Sequence[str]) -> str:
    shared = {way: one_value(entries, way) for way in WAYS}
    rows, beyond = [], dict.fromkeys(WAYS, 0)
    for task in tasks:
        tuned = best(entries, task, "lam")
        cells = [mean_and_deviation(tuned["test_error"])]
        for way, found in shared.items():
            cell = mean_and_deviation(found[task]["test_error"])
            within = is_within_spread(found[task], tuned)
            beyond[way] += not within
            cells.append(cell if within else f"**{cell}**")
        rows.append([TASKS[task].title, *cells])
    rows.append(["tasks beyond the spread", "", *(f"{number} of {len(tasks)}" for number in beyond.values())])
    values = [f"{WAYS[way]}: {found[tasks[0]]['value']:g}" for way, found in shared.items()]
    header = ["test error (%), one value for all tasks", "λ tuned for each", *values]
    note = "Bold: more than one standard deviation over seeds above the λ that was tuned for the task."
    return f"{markdown_table(header, rows)}\n{note}\n"


def _difference_table(entries: Sequence[Entry], tasks: Sequence[str]) -> str:
    """The same, less the test error of the tuned λ with the same seed."""
    shared = {way: one_value(entries, way) for way in WAYS}
    rows = []
    for task in tasks:
        tuned = best(entries, task, "lam")["test_error"]
        differences = [
            [one - other for one, other in zip(found[task]["test_error"], tuned, strict=True)]
            for found in shared.values()
        ]
        rows.append([TASKS[task].title, *map(mean_and_deviation, differences)])
    header = ["one value less the λ tuned for each, seed by seed", *WAYS.values()]
    return markdown_table(header, rows)


def _lam_table(entries: Sequence[Entry], tasks: Sequence[str]) -> str:
    start, throughout = (one_value(entries, way) for way in ("start", "throughout"))
    rows = []
    for task in tasks:
        entry = throughout[task]
        cost = 100 * sum(entry["measuring"]) / (sum(entry["seconds"]) - sum(entry["measuring"]))
        lams = [start[task]["first_lam"], entry["first_lam"], entry["last_lam"]]
        rows.append([TASKS[task].title, *(mean_and_deviation(each, digits=3) for each in lams), f"{cost:.0f}"])
    header = [
        "λ that the one value means",
        f"at the start, ρ = {start[tasks[0]]['value']:g}",
        f"throughout, ρ = {throughout[tasks[0]]['value']:g}: first",
        "last",
        "time for measuring (% of the training)",
    ]
    return markdown_table(header, rows)


def draw(entries: Sequence[Entry], path: Path) -> None:
    """Draw validation error against the value, a panel for each task and a line for each way, and save the picture."""
    tasks = list(dict.fromkeys(entry["task"] for entry in entries))
    columns = min(4, len(tasks))
    lines = -(-len(tasks) // columns)
    figure = Figure(figsize=(3 * columns, 2.7 * lines + 0.8), dpi=130, layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in panels[len(tasks) :]:
        axes.set_visible(False)
    for axes, task in zip(panels, tasks, strict=False):
        unpenalised = best(entries, task, "none")
        drawn = [mean(unpenalised["validation_error"])]
        axes.axhline(mean(unpenalised["validation_error"]), color=FAINT, linewidth=1.2, label="no penalty")
        for style, (way, label) in zip(reversed(styles(len(WAYS), markers=True)), WAYS.items(), strict=True):
            tried = sorted(
                (entry for entry in entries if (entry["task"], entry["way"]) == (task, way)),
                key=lambda entry: entry["value"],
            )
            values = [entry["value"] for entry in tried]
            errors = [float(np.mean(entry["validation_error"])) for entry in tried]
            drawn += errors
            axes.plot(values, errors, label=label, linewidth=1.6, markersize=4, **style)
        # Too strong a penalty costs so much that the rest would be a flat line.
        lowest, highest = min(drawn), min(max(drawn), 1.5 * mean(unpenalised["validation_error"]))
        margin = 0.05 * (highest - lowest)
        axes.set_ylim(lowest - margin, highest + margin)
        axes.set_title(TASKS[task].title, fontsize=9)
        axes.set_xscale("log")
        axes.set_xticks(values, [f"{value:g}" for value in values], fontsize=8)
        axes.xaxis.set_minor_locator(NullLocator())
        tidy(axes)
    caption = "Mean of all seeds; more than 1.5 times the error without a penalty lies outside."
    figure.supxlabel(f"λ or ρ (log scale)\n{caption}", fontsize=9)
    figure.supylabel("validation error (%)", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, handlelength=3, fontsize=8
    )
    figure.savefig(path)
