"""The papers' tables beside what was found here, cell by cell: `docs/results/paper_tables.md`.

    python examples/paper_comparison.py [--results FOLDER] [--output FILE]

FOLDER is that of the repository's results: `published.json` has the papers' numbers and those of the authors' logs, the
folders `lenet5` and `cifar10` the trainings of `reproduce_lenet5.py` and `reproduce_cifar10.py`, `lenet5_long` those of
the former with as many epochs as the paper has for Fashion-MNIST, `pruning_study` those of `pruning_study.py`. A cell
without a training says so.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from paper_tables import LABELS, SETS, Place, Result, name_set, read_results
from support.tables import markdown_table, mean_and_deviation, mean_of_last

RESULTS = Path(__file__).parents[1] / "docs" / "results"
NO_RUN = "no run"
CIFAR10_NETWORKS = ("ResNet-18", "MobileNetV2", "All-CNN-C")
COLUMNS = ("here", "seeds", "epochs", "hours")
FIRST_PAPER = """\
# The papers' tables, cell by cell

Test error in per cent. *Paper*: as printed there; *authors' logs*: of the training logs that its authors publish with
their code. A dash: no number is at hand. *Here*: mean ± standard deviation over the seeds of the mean over the last
five epochs; hours are those of one training. The single best epoch of a curve, which is smaller, is nowhere taken.

{sources}

## First paper: LeNet-5

```sh
python examples/reproduce_lenet5.py --data FOLDER
```
"""
FIGURES = """\
Fig. 2, error and ⟨z²⟩ over the epochs, is [here](../results.md#lenet-5-on-mnist) for MNIST and
[here](../results.md#lenet-5-on-fashion-mnist) for Fashion-MNIST; Fig. 3, the distribution of weights by layer, stands
below each of them, with that of potentials.
"""
CIFAR10 = """\
## First paper: CIFAR-10

```sh
python examples/reproduce_cifar10.py --data FOLDER
```

The first table is for the whole set. Those after it have what was trained on a part of the training images, for which
the paper has no number.
"""
SECOND_PAPER = """\
## Second paper: gradual pruning

```sh
python examples/pruning_study.py --data FOLDER
```

Where trainings of several seeds are at different sparsities, each has a row of its own.
"""
MAPS = """\
One-shot arms at these sparsities (Fig. 1 there): {one_shot}. The maps of loss, ⟨z²⟩ and PSP-entropy between a gradually
and a one-shot pruned solution and the spectra of the Hessian (Fig. 2 to 4), of LeNet-5 and LeNet-300:
[there](../results.md#around-two-pruned-networks).
"""


def lenet5_table(name: str, techniques: Mapping[str, Sequence[Any]], published: Mapping[str, Any]) -> str:
    """One set's errors by technique."""
    rows = []
    for technique, numbers in published["errors"][name].items():
        printed = [numbers.get(source, "–") for source in ("paper", "logs")]
        rows.append([LABELS[technique], *printed, *cells(techniques.get(technique, ()))])
    header = [f"{SETS.get(name, name)} ({published['epochs'][name]} epochs there)", "paper", "authors' logs", *COLUMNS]
    return markdown_table(header, rows)


def cells(results: Sequence[Any]) -> list[str]:
    """What was found in trainings of one kind."""
    if not results:
        return [NO_RUN, "0", "–", "–"]
    epochs = " or ".join(map(str, sorted({len(result["epochs"]) for result in results})))
    hours = mean(sum(epoch["seconds"] for epoch in result["epochs"]) / 3600 for result in results)
    errors = mean_and_deviation([mean_of_last(result, "error") for result in results])
    return [errors, str(len(results)), epochs, f"{hours:.1f}"]


def cifar10_table(trainings: Mapping[Place, Mapping[str, Sequence[Result]]], published: Mapping[str, Any]) -> str:
    """Errors of the networks on the whole of CIFAR-10, by technique; the paper compares ℓ2 and PSP."""
    rows = []
    for network in CIFAR10_NETWORKS:
        techniques = trainings.get(("CIFAR10", network, 0), {})
        printed = published["CIFAR10"].get(network, {})
        for technique in dict.fromkeys(("l2", "psp_paper", *techniques)):
            found = cells(techniques.get(technique, ()))
            rows.append([f"{network}, {LABELS[technique]}", printed.get(technique, "–"), *found])
    return markdown_table(["CIFAR-10", "paper", *COLUMNS], rows)


def other_cifar10_tables(trainings: Mapping[Place, Mapping[str, Sequence[Result]]]) -> list[str]:
    """Errors beside which the paper has none: of JPEGs or a part of the training images, a table for each."""
    rows: dict[tuple[str, int], list[list[str]]] = defaultdict(list)
    for (name, network, images), techniques in trainings.items():
        if (name, images) == ("CIFAR10", 0) and network in CIFAR10_NETWORKS:
            continue
        found = [[f"{network}, {LABELS[technique]}", *cells(results)] for technique, results in techniques.items()]
        rows[name, images] += found
    return [markdown_table([name_set(*each), *COLUMNS], found) for each, found in sorted(rows.items())]


def pruning_table(rows: Sequence[Mapping[str, Any]], published: Mapping[str, str]) -> str:
    """How far each gradual training came."""
    lines = []
    for row in rows:
        if row["arm"] != "gradual":
            continue
        network, name = row["task"].split("_")
        where = f"{network.replace('lenet', 'LeNet-')}, {'MNIST' if name == 'mnist' else 'Fashion-MNIST'}"
        first, last = row["levels"][0], row["levels"][-1]
        lines.append(
            [
                where,
                published.get(row["task"], "–") if not row["lam"] else "–",
                f"{row['lam']:g}" if row["lam"] else "none",
                str(row["seed"]),
                f"{first['test_error']:.2f}",
                f"{100 * last['sparsity']:.2f}",
                f"{last['test_error']:.2f}",
                "yes" if row["ended"] else "no",
            ]
        )
    header = ["network, set", "paper", "λ of PSP", "seed", "error, dense", "pruned (%)", "error, pruned", "ended"]
    return markdown_table(header, lines)


def page(folder: Path) -> str:
    """The whole page."""
    published = json.loads((folder / "published.json").read_text())
    trainings, _, _ = read_results(folder / "lenet5")
    longer, _, _ = read_results(folder / "lenet5_long")
    on_cifar10, _, _ = read_results(folder / "cifar10")
    pruning = json.loads((folder / "pruning_study" / "pruning_study.json").read_text())["trainings"]
    one_shot = sum(row["arm"] not in ("gradual", "dense") for row in pruning)
    sources = "\n".join(
        f"- {label}: {published['sources'][name]}." for name, label in (("paper", "Papers"), ("logs", "Logs"))
    )
    parts = [
        FIRST_PAPER.format(sources=sources),
        *(lenet5_table(name, trainings.get((name, "LeNet-5", 0), {}), published) for name in published["errors"]),
        *(lenet5_table(name, techniques, published) for (name, _, _), techniques in longer.items()),
        FIGURES,
        CIFAR10,
        cifar10_table(on_cifar10, published),
        *other_cifar10_tables(on_cifar10),
        SECOND_PAPER,
        pruning_table(pruning, published["pruning"]),
        MAPS.format(one_shot=f"{one_shot} [trainings](../results.md#pruning)" if one_shot else "no run"),
    ]
    return "\n".join(parts)


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description="Make the page that compares the papers' tables with what was found.")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--output", type=Path, default=RESULTS / "paper_tables.md", help="the page")
    options = parser.parse_args()
    options.output.write_text(page(options.results))
    print(options.output)


if __name__ == "__main__":
    main()
