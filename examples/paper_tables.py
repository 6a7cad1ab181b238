"""Tables and pictures of the first paper, made of what `reproduce_lenet5.py` has written.

    python examples/paper_tables.py --results FOLDER --output FOLDER

For each set: `<set>.md` with the test error, ⟨z²⟩ and test loss after the last epoch, mean ± standard deviation over
the seeds, and the choice of ℓ2's strength; `<set>_curves.png` with error and ⟨z²⟩ over the epochs (Fig. 2);
`<set>_weights.png` with the distribution of weights by layer for ℓ2 and PSP (Fig. 3), and `<set>_potentials.png` the
same for potentials. Only trainings that are done count; what lacks its trainings is left out.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from curves import Curves, plot_curves
from distribution_figure import add_histograms, plot_distributions
from tables import markdown_table, mean_and_deviation

# In the order of the table, the one to point out last.
LABELS = {"none": "no regularisation", "l2": "ℓ2", "dropout": "dropout", "psp": "PSP"}
STRENGTHS = {"l2": "weight_decay", "dropout": "dropout", "psp": "lam"}

Result = Mapping[str, Any]


def read_results(folder: Path) -> tuple[dict[str, dict[str, list[Result]]], dict[str, list[Result]]]:
    """Read all trainings in ``folder``.

    Returns:
        For each set and technique the trainings on the whole training set, and for each set those that chose ℓ2's
        strength.
    """
    trainings: dict[str, dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    sweeps: dict[str, list[Result]] = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        configuration = result["configuration"]
        if configuration["held_out"]:
            sweeps[configuration["set"]].append(result)
        else:
            trainings[configuration["set"]][configuration["technique"]].append(result)
    ordered = {name: {each: found[each] for each in LABELS if each in found} for name, found in trainings.items()}
    return ordered, sweeps


def label(technique: str, results: Sequence[Result]) -> str:
    """Name a technique with its strength."""
    if technique not in STRENGTHS:
        return LABELS[technique]
    symbol = {"lam": "λ = ", "weight_decay": "weight decay ", "dropout": ""}[STRENGTHS[technique]]
    return f"{LABELS[technique]} ({symbol}{results[0]['configuration'][STRENGTHS[technique]]:g})"


def errors_table(techniques: Mapping[str, Sequence[Result]]) -> str:
    """Test error, ⟨z²⟩ and loss after the last epoch, for each technique."""
    rows = []
    for technique, results in techniques.items():
        last = [result["epochs"][-1] for result in results]
        rows.append(
            [
                label(technique, results),
                str(len(results)),
                mean_and_deviation([epoch["error"] for epoch in last]),
                mean_and_deviation([epoch["z2"] for epoch in last]),
                mean_and_deviation([epoch["loss"] for epoch in last], digits=4),
                mean_and_deviation([epoch["train_loss"] for epoch in last], digits=4),
            ]
        )
    return markdown_table(["technique", "seeds", "test error (%)", "⟨z²⟩", "test loss", "training loss"], rows)


def layers_table(techniques: Mapping[str, Sequence[Result]]) -> str:
    """⟨z²⟩ of each layer after the last epoch, for each technique."""
    layers = list(next(iter(techniques.values()))[0]["epochs"][-1]["z2_layers"])
    rows = [
        [
            label(technique, results),
            *(mean_and_deviation([result["epochs"][-1]["z2_layers"][layer] for result in results]) for layer in layers),
        ]
        for technique, results in techniques.items()
    ]
    return markdown_table(["⟨z²⟩ on the test set", *layers], rows)


def sweep_table(sweep: Sequence[Result]) -> str:
    """Error on held-out images for each weight decay, as `reproduce_lenet5.py` compares them."""
    errors = {
        result["configuration"]["weight_decay"]: mean(epoch["error"] for epoch in result["epochs"][-3:])
        for result in sweep
    }
    rows = [[f"{weight_decay:g}", f"{errors[weight_decay]:.3f}"] for weight_decay in sorted(errors)]
    return markdown_table(["weight decay", "error on held-out training images (%)"], rows)


def write_tables(name: str, techniques: Mapping[str, Sequence[Result]], sweep: Sequence[Result], path: Path) -> None:
    """Write all tables of one set."""
    epochs = sorted({result["configuration"]["epochs"] for results in techniques.values() for result in results})
    versions = sorted({json.dumps(result["versions"]) for results in techniques.values() for result in results})
    parts = [
        f"# LeNet-5 on {name}\n",
        f"After the last of {' or '.join(map(str, epochs))} epochs, mean ± standard deviation over the seeds.\n",
        errors_table(techniques),
        layers_table(techniques),
    ]
    if sweep:
        (sweep_epochs,) = {len(result["epochs"]) for result in sweep}
        parts += [f"The choice of ℓ2's strength: {sweep_epochs} epochs, one seed, the mean over the last three.\n"]
        parts += [sweep_table(sweep)]
    for each in versions:
        named = ", ".join(f"{package} {version}" for package, version in json.loads(each).items())
        parts.append(f"Made with {named}.\n")
    path.write_text("\n".join(parts))


def draw_pictures(name: str, techniques: Mapping[str, Sequence[Result]], folder: Path) -> None:
    """Draw the curves of all techniques, and the distributions of ℓ2 and PSP where both are there."""
    plot_curves(
        [
            Curves(
                label(technique, results),
                error=[[epoch["error"] for epoch in result["epochs"]] for result in results],
                z2=[[epoch["z2"] for epoch in result["epochs"]] for result in results],
            )
            for technique, results in techniques.items()
        ],
        folder / f"{name}_curves.png",
        title=f"LeNet-5 on {name}: test error",
        measured_on="the test set",
    )
    if not {"l2", "psp"} <= techniques.keys():
        return
    for values in ("weights", "potentials"):
        histograms = {
            label(technique, techniques[technique]): add_histograms([each[values] for each in techniques[technique]])
            for technique in ("l2", "psp")
        }
        plot_distributions(histograms, values.removesuffix("s"), folder / f"{name}_{values}.png")


def main() -> None:
    """Write tables and pictures of all sets that have results, and print the tables."""
    parser = argparse.ArgumentParser(description="Make tables and pictures of the trainings of reproduce_lenet5.py.")
    output = Path(__file__).parent / "output" / "lenet5"
    parser.add_argument("--results", type=Path, default=output, help="folder of the JSON files")
    parser.add_argument("--output", type=Path, default=output, help="folder of the tables and pictures")
    options = parser.parse_args()
    trainings, sweeps = read_results(options.results)
    if not trainings:
        parser.error(f"Expected --results to hold trainings of reproduce_lenet5.py but found none in {options.results}")
    options.output.mkdir(parents=True, exist_ok=True)
    for name, techniques in trainings.items():
        table = options.output / f"{name}.md"
        write_tables(name, techniques, sweeps.get(name, []), table)
        draw_pictures(name, techniques, options.output)
        print(table.read_text())


if __name__ == "__main__":
    main()
