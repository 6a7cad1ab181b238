"""Do features of pruned networks transfer better, and is it their PSP-entropy? The second paper's open question.

    python examples/transfer_study.py --data FOLDER [--solutions FOLDER] [--network lenet300] ...

Needs the trainings of `pruning_study.py` on MNIST and on Fashion-MNIST. The networks trained on one set, dense, pruned
gradually and pruned in one shot, are frozen, and a logistic regression on what enters their last layer learns the other
set. A table has its accuracy beside the PSP-entropies of both orders, and the rank correlations (Spearman's, with a
bootstrap interval over networks) of accuracy and entropy.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from tqdm import tqdm

from geometry_study import Batches, load_batches, measure, read_solution
from pruning_study import TASKS
from support.options import positive_integer
from support.resumable import keep_configuration, write_json
from support.tables import markdown_table, mean_and_deviation

ARMS = {
    "dense": "dense",
    "gradual": "gradual (LOBSTER)",
    "lottery_ticket": "one-shot, lottery ticket",
    "one_shot": "one-shot, masks of the dense network",
}
ORDERS = {"entropy": "PSP-entropy (bits)", "entropy2": "second-order PSP-entropy (bits)"}
SETS = {"mnist": "MNIST", "fashion": "Fashion-MNIST"}
RESAMPLINGS = 2000


@dataclass(frozen=True)
class Network:
    """Where the weights of one trained network are."""

    source: str
    arm: str
    seed: int
    path: Path


def trained_networks(folder: Path, network: str, seeds: int) -> Iterator[Network]:
    """Dense networks and those of the highest sparsity, of both sets."""
    study = folder / "pruning_study.json"
    trainings = json.loads(study.read_text())["trainings"] if study.exists() else []
    for source in SETS:
        task = f"{network}_{source}"
        rows = [row for row in trainings if row["task"] == task and not row["lam"] and row["seed"] < seeds]
        highest = max((row["level"] for row in rows), default=0)
        if not highest:
            raise FileNotFoundError(
                f"Expected {study} to have networks of {task} that were pruned in one shot but it has none, or is not"
                f" there: run `pruning_study.py --data FOLDER --tasks {task}`, or name its folder with `--solutions`."
            )
        for row in rows:
            if row["arm"] in ARMS and (row["arm"] in ("dense", "gradual") or row["level"] == highest):
                level = f"_level{row['level']:02}" if row["level"] else ""
                name = f"{row['task']}_{row['arm']}{level}_seed{row['seed']}"
                last = len(row["levels"]) - 1
                yield Network(source, row["arm"], row["seed"], folder / name / f"level{last:02}.pt")


@torch.no_grad()
def features(network: nn.Module, batches: Batches) -> tuple[np.ndarray, np.ndarray]:
    """What enters the network's last linear layer, and the labels."""
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    seen: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].cpu()))
    with handle:
        for images, _ in batches:
            network(images)
    return torch.cat(seen).numpy(), torch.cat([labels for _, labels in batches]).cpu().numpy()


def probe(network: nn.Module, target: dict[str, Batches]) -> float:
    """Accuracy in per cent of a linear classifier on the frozen features."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, tol=1e-3))
    classifier.fit(*features(network, target["train"]))
    return 100 * float(classifier.score(*features(network, target["test"])))


def interval(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Spearman's rank correlation, with the interval that holds 95 % of its values when networks are drawn again."""
    generator = np.random.default_rng(0)
    drawn = [generator.integers(0, len(x), len(x)) for _ in range(RESAMPLINGS)]
    values = [spearmanr(x[each], y[each]).statistic for each in drawn if len(set(x[each])) > 1 < len(set(y[each]))]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(spearmanr(x, y).statistic), float(low), float(high)


def report(rows: list[dict[str, Any]], folder: Path) -> None:
    """Write ``transfer_study.md``."""
    text = "# Transfer\n"
    for source, words in SETS.items():
        target = next(title for name, title in SETS.items() if name != source)
        of_source = [row for row in rows if row["source"] == source]
        header = ["network", "seeds", "own error (%)", f"accuracy on {target} (%)", *ORDERS.values()]
        text += f"\n## From {words} to {target}\n\n{markdown_table(header, table_rows(of_source))}\n"
        pruned = [row for row in of_source if row["arm"] != "dense"]
        for order, label in ORDERS.items():
            for chosen, which in ((of_source, "all networks"), (pruned, "pruned")):
                value, low, high = interval(*np.array([[row[order], row["accuracy"]] for row in chosen]).T)
                text += f"- {label}, {which}: rank correlation {value:.2f} ({low:.2f} to {high:.2f})\n"
    (folder / "transfer_study.md").write_text(text)
    print(text)


def table_rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A line for each kind of network."""
    lines = []
    for arm, label in ARMS.items():
        same = [row for row in rows if row["arm"] == arm]
        if same:
            columns = ("test_error", "accuracy", *ORDERS)
            values = [mean_and_deviation([row[each] for row in same]) for each in columns]
            lines.append([label, str(len(same)), *values])
    return lines


def main() -> None:
    """Run the probes behind one progress bar, then write the table."""
    parser = argparse.ArgumentParser(
        description="Linear probes on the features of dense and pruned networks.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    output = Path(__file__).parent / "output"
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets, as torchvision stores them")
    parser.add_argument("--solutions", type=Path, default=output / "pruning_study", help="results of pruning_study.py")
    parser.add_argument("--network", choices=("lenet300", "lenet5"), default="lenet300", help="whose solutions")
    parser.add_argument("--images", type=positive_integer, default=10_000, help="images of each set")
    parser.add_argument("--seeds", type=positive_integer, default=3, help="networks of each kind")
    parser.add_argument("--results", type=Path, default=output / "transfer_study", help="folder of the results")
    options = parser.parse_args()
    folder: Path = options.results / options.network
    folder.mkdir(parents=True, exist_ok=True)
    keep_configuration(folder / "configuration.json", {"images": options.images})
    networks = list(trained_networks(options.solutions, options.network, options.seeds))
    sets = {
        name: load_batches(TASKS[f"{options.network}_{name}"], options.data, options.images, torch.device("cpu"))
        for name in SETS
    }
    path = folder / "transfer_study.json"
    done: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    rows = []
    for each in tqdm(networks, unit="network"):
        solution = read_solution(each.path)
        if solution.digest not in done:
            network = TASKS[f"{options.network}_{each.source}"].network()
            network.load_state_dict(solution.weights)
            measured = measure(network, sets[each.source]["test"])
            target = next(batches for name, batches in sets.items() if name != each.source)
            done[solution.digest] = {
                "source": each.source,
                "arm": each.arm,
                "seed": each.seed,
                "sparsity": solution.sparsity,
                "test_error": measured["test_error"],
                "accuracy": probe(network, target),
                **{order: mean(measured[order].values()) for order in ORDERS},
            }
            write_json(path, done)
        rows.append(done[solution.digest])
    report(rows, folder)


if __name__ == "__main__":
    main()
