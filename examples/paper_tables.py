"""Tables and pictures of the first paper, made of what `reproduce_lenet5.py` and `reproduce_cifar10.py` have written.

    python examples/paper_tables.py --results FOLDER --output FOLDER

For each set and network: `<name>.md` with the test error over the last five epochs and after the last, ⟨z²⟩ and test
loss, mean ± standard deviation over the seeds, and the choice of ℓ2's strength; `<name>_curves.png` with error and ⟨z²⟩
over the epochs (Fig. 2), or one such picture for each kind of PSP, without ℓ1 and label smoothing; `<name>_weights.png`
with the distribution of weights by layer for ℓ2 and PSP (Fig. 3), and `<name>_potentials.png` the same for potentials.
The name is the set's, for LeNet-5, else `<set>_<network>`; trainings on a part of the training images are of a set of
their own, whose name and titles tell the number. Only trainings that are done count; what lacks its trainings is left
out, and so are, by name, JSON files of something else.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from textwrap import fill
from typing import Any

from lightning_psp.plotting import plot_curves, plot_distributions
from support.distributions import add_histograms
from support.tables import LAST, markdown_table, mean_and_deviation, mean_of_last

# In the order of the table, those to point out last.
LABELS = {
    "none": "no regularisation",
    "l1": "ℓ1",
    "l2": "ℓ2",
    "dropout": "dropout",
    "label_smoothing": "label smoothing",
    "none_code": "no regularisation, batch of the code",
    "psp": "PSP",
    "psp_paper": "PSP",
    "psp_eq7": "PSP, Eq. 7",
    "psp_code": "PSP, code",
}
STRENGTHS = {
    "l1": ("l1", ""),
    "l2": ("weight_decay", "weight decay "),
    "dropout": ("dropout", ""),
    "label_smoothing": ("label_smoothing", ""),
    **{technique: ("lam", "λ = ") for technique in LABELS if technique.startswith("psp")},
}
# What each kind of PSP is drawn beside.
COMPARED = {
    **dict.fromkeys(("psp", "psp_paper", "psp_eq7"), ("none", "l2", "dropout")),
    "psp_code": ("none_code", "l2", "dropout"),
}

WIDEST_TITLE = 44  # letters above a panel
SETS = {"FashionMNIST": "Fashion-MNIST", "CIFAR10": "CIFAR-10", "CIFAR10-jpeg": "CIFAR-10 as JPEGs"}

Result = Mapping[str, Any]
Place = tuple[str, str, int]  # set, network and number of training images where they are not all, else 0


def read_results(folder: Path) -> tuple[dict[Place, dict[str, list[Result]]], dict[Place, list[Result]], list[str]]:
    """Read all trainings in ``folder``.

    Returns:
        For each place, by technique, the trainings without held-out images; for each place those that chose ℓ2's
        strength; and the names of JSON files that are no trainings of the two scripts.
    """
    trainings: dict[Place, dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    sweeps: dict[Place, list[Result]] = defaultdict(list)
    foreign = []
    for path in sorted(folder.glob("*.json")):
        result = read_training(path)
        if result is None:
            foreign.append(path.name)
            continue
        configuration = result["configuration"]
        place = (
            configuration["set"],
            configuration.get("network", "LeNet-5"),
            configuration.get("train_images", 0),
        )
        if configuration["held_out"]:
            sweeps[place].append(result)
        else:
            trainings[place][configuration["technique"]].append(result)
    ordered = {place: {each: found[each] for each in LABELS if each in found} for place, found in trainings.items()}
    return ordered, sweeps, foreign


def read_training(path: Path) -> Result | None:
    """Read a JSON file, or return nothing where it is no training of the two scripts."""
    try:
        result = json.loads(path.read_text())
    except ValueError:
        return None
    if not isinstance(result, dict) or not {"configuration", "versions", "epochs"} <= result.keys():
        return None
    configuration = result["configuration"]
    if not isinstance(configuration, dict):
        return None
    is_known = {"set", "technique", "epochs", "held_out"} <= configuration.keys()
    return result if is_known and configuration["technique"] in LABELS else None


def name_set(name: str, images: int) -> str:
    """Name a set, with the number of training images where they are not all."""
    return SETS.get(name, name) + (f", {images:,} training images" if images else "")


def label(technique: str, results: Sequence[Result]) -> str:
    """Name a technique with its strength."""
    if technique not in STRENGTHS:
        return LABELS[technique]
    name, symbol = STRENGTHS[technique]
    strength = results[0]["configuration"][name]
    # All-CNN-C's dropout has a name for what is dropped, and no single strength.
    return f"{LABELS[technique]} ({symbol}{strength if isinstance(strength, str) else format(strength, 'g')})"


def errors_table(techniques: Mapping[str, Sequence[Result]]) -> str:
    """Test error over the last epochs, and error, ⟨z²⟩ and loss after the last one, for each technique."""
    rows = []
    number = len(all_layers(techniques))
    for technique, results in techniques.items():
        last = [result["epochs"][-1] for result in results]
        watched = len(last[0]["z2_layers"])
        z2 = mean_and_deviation([epoch["z2"] for epoch in last])
        rows.append(
            [
                label(technique, results),
                str(len(results)),
                mean_and_deviation([mean_of_last(result, "error") for result in results]),
                mean_and_deviation([epoch["error"] for epoch in last]),
                z2 if watched == number else f"{z2} ({watched} of {number} layers)",
                mean_and_deviation([epoch["loss"] for epoch in last], digits=4),
                mean_and_deviation([epoch["train_loss"] for epoch in last], digits=4),
            ]
        )
    header = ["technique", "seeds", "test error (%)", "after the last epoch", "⟨z²⟩", "test loss", "training loss"]
    return markdown_table(header, rows)


def all_layers(techniques: Mapping[str, Sequence[Result]]) -> list[str]:
    """Layers in order; a technique that penalises only some of them has watched only these."""
    return list(max((results[0]["epochs"][-1]["z2_layers"] for results in techniques.values()), key=len))


def layers_table(techniques: Mapping[str, Sequence[Result]]) -> str:
    """⟨z²⟩ of each layer after the last epoch, for each technique."""
    rows = []
    for layer in all_layers(techniques):
        found = [[result["epochs"][-1]["z2_layers"] for result in results] for results in techniques.values()]
        cells = [mean_and_deviation([z2[layer] for z2 in last]) if layer in last[0] else "–" for last in found]
        rows.append([layer, *cells])
    return markdown_table(["⟨z²⟩ on the test set", *map(label, techniques, techniques.values())], rows)


def sweep_table(sweep: Sequence[Result]) -> str:
    """Error on held-out images for each weight decay, as `reproduce_lenet5.py` compares them."""
    errors = {
        result["configuration"]["weight_decay"]: mean(epoch["error"] for epoch in result["epochs"][-3:])
        for result in sweep
    }
    rows = [[f"{weight_decay:g}", f"{errors[weight_decay]:.3f}"] for weight_decay in sorted(errors)]
    return markdown_table(["weight decay", "error on held-out training images (%)"], rows)


def write_tables(title: str, techniques: Mapping[str, Sequence[Result]], sweep: Sequence[Result], path: Path) -> None:
    """Write all tables of a network on a set."""
    epochs = sorted({result["configuration"]["epochs"] for results in techniques.values() for result in results})
    versions = sorted({json.dumps(result["versions"]) for results in techniques.values() for result in results})
    parts = [
        f"# {title}\n",
        f"Mean ± standard deviation over the seeds: the test error is that over the last {LAST} of"
        f" {' or '.join(map(str, epochs))} epochs, all else is after the last one.\n",
        # Marks of the part that a page of the documentation shows.
        f"<!-- --8<-- [start:errors] -->\n{errors_table(techniques)}<!-- --8<-- [end:errors] -->\n",
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


def pictured(techniques: Mapping[str, Sequence[Result]]) -> dict[str, list[str]]:
    """Techniques of each picture of curves, by the end of its name: no more than curves can be told apart."""
    kinds = [technique for technique in techniques if technique in COMPARED]
    if not kinds:
        return {"curves": list(techniques)[:4]}
    return {
        "curves" if len(kinds) == 1 else f"{kind}_curves": [
            technique for technique in (*COMPARED[kind], kind) if technique in techniques
        ]
        for kind in kinds
    }


def draw_pictures(title: str, techniques: Mapping[str, Sequence[Result]], stem: str, folder: Path) -> None:
    """Draw the curves, and the distributions of ℓ2 and PSP where they were counted."""
    for end, drawn in pictured(techniques).items():
        figure, _ = plot_curves(
            {
                label(technique, techniques[technique]): [
                    {key: [epoch[key] for epoch in result["epochs"]] for key in ("error", "z2")}
                    for result in techniques[technique]
                ]
                for technique in drawn
            },
            keys=("error", "z2"),
            titles={
                "error": fill(f"{title}: test error", WIDEST_TITLE),
                "z2": "Size of the potentials, on the test set",
            },
            units={"error": "wrongly classified (%)", "z2": "mean squared potential ⟨z²⟩"},
        )
        figure.savefig(folder / f"{stem}_{end}.png")
    for values in ("weights", "potentials"):
        counted = {
            label(technique, results): add_histograms([each[values] for each in results])
            for technique, results in techniques.items()
            if technique in ("l2", "psp") and all(values in each for each in results)
        }
        if len(counted) == 2:
            figure, _ = plot_distributions(counted, values=values.removesuffix("s"))
            figure.savefig(folder / f"{stem}_{values}.png")


def main() -> None:
    """Write tables and pictures of all sets that have results, and print the tables."""
    parser = argparse.ArgumentParser(description="Make tables and pictures of the trainings of reproduce_*.py.")
    output = Path(__file__).parent / "output" / "lenet5"
    parser.add_argument("--results", type=Path, default=output, help="folder of the JSON files")
    parser.add_argument("--output", type=Path, default=output, help="folder of the tables and pictures")
    options = parser.parse_args()
    trainings, sweeps, foreign = read_results(options.results)
    if foreign:
        print("Left out, for they are no trainings of reproduce_*.py:", *foreign, file=sys.stderr)
    if not trainings:
        parser.error(
            "Expected --results to hold trainings of reproduce_lenet5.py or reproduce_cifar10.py but found none in"
            f" {options.results}"
        )
    options.output.mkdir(parents=True, exist_ok=True)
    for (name, network, images), techniques in trainings.items():
        title = f"{network} on {name_set(name, images)}"
        part = f"{name}-{images}images" if images else name
        stem = part if network == "LeNet-5" else f"{part}_{network}"
        table = options.output / f"{stem}.md"
        write_tables(title, techniques, sweeps.get((name, network, images), []), table)
        draw_pictures(title, techniques, stem, options.output)
        print(table.read_text())


if __name__ == "__main__":
    main()
