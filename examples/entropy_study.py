"""What a soft-entropy term beside the loss does to error, PSP-entropy and transfer.

Trains a small LeNet with several values of `entropy_weight` and several seeds, on scikit-learn's handwritten digits
and, where `--data` is given, on a part of MNIST. Each training is done twice:

- on all ten digits, for the error, the PSP-entropy of order 1 and ⟨z²⟩ on unseen images;
- on the digits 0 to 4, whose hidden layers are then frozen; a linear classifier on the last of them learns the digits 5
  to 9. Its error on unseen images of these is the transfer error.

    python examples/entropy_study.py [--data FOLDER] [--seeds N] [--output FOLDER]

`results.json` in the output folder has an entry for each run that is done; the study goes on where it was stopped.
"""

import argparse
import json
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from lightning_psp import PSPCallback, record_potentials
from lightning_psp.functional import psp_entropy
from support.data import Digits
from support.entropy_figure import Run, draw
from support.models import DigitsLeNet
from support.options import positive_integer
from support.resumable import silence_lightning

CAPTION = (
    "Mean ± standard deviation over seeds, on images that were not trained on. A positive `entropy_weight` lowers the"
    " soft entropy at the temperature T, a negative one raises it. The entropies here are those of binary states, of"
    " order 1. Printed by `python examples/entropy_study.py --data FOLDER`, which draws the picture, too."
)
SOURCE_CLASSES = range(5)  # the digits that are trained on for the transfer


@dataclass(frozen=True)
class Images:
    """Images with their labels."""

    images: Tensor
    labels: Tensor

    def of_source(self, is_source: bool) -> "Images":
        """Those of the digits 0 to 4, or the others."""
        chosen = (self.labels < len(SOURCE_CLASSES)) == is_source
        return Images(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Task:
    """A data set, a network for it, and how long it is trained."""

    name: str
    train: Images
    test: Images
    network: type[DigitsLeNet]
    epochs: int
    weights: dict[float, tuple[float, ...]]  # for each temperature
    seeds: int


class MnistLeNet(DigitsLeNet):
    """LeNet-5 as in the first paper: 20 and 50 filters, 500 hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, kernel_size=5)
        self.conv2 = nn.Conv2d(20, 50, kernel_size=5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, 10)


class ProgressBar(Callback):
    """Moves the one progress bar of the study."""

    def __init__(self, bar: tqdm) -> None:
        self.bar = bar

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One epoch more."""
        self.bar.update()


def digits_task(seeds: int) -> Task:
    """797 digits of 8×8 pixels to train on, 1,000 to test on: nothing is chosen by any of them."""
    data = Digits()
    images, labels = (torch.cat(both) for both in zip(data.validation_set.tensors, data.test_set.tensors, strict=True))
    weights = {1.0: (-0.1, -0.03, -0.01, 0.0, 0.01, 0.03, 0.1), 0.1: (-0.1, -0.03, 0.03, 0.1)}
    return Task("digits", Images(*data.train_set.tensors), Images(images, labels), DigitsLeNet, 80, weights, seeds)


def mnist_task(root: Path, seeds: int) -> Task:
    """The first 2,000 images of MNIST's training set, and its whole test set."""
    from torchvision.datasets import MNIST

    sets = []
    for is_train, number in ((True, 2000), (False, 10000)):
        data = MNIST(root, train=is_train)
        images = (data.data[:number, None].float() / 255 - 0.1307) / 0.3081
        sets.append(Images(images, data.targets[:number]))
    return Task("MNIST", *sets, MnistLeNet, 6, {1.0: (-0.1, 0.0, 0.1)}, seeds)


def train(task: Task, images: Images, weight: float, temperature: float, seed: int, bar: tqdm) -> DigitsLeNet:
    """Trains a network; with one seed, all settings start from the same weights."""
    seed_everything(seed, verbose=False)
    network = task.network()
    trainer = Trainer(
        max_epochs=task.epochs,
        callbacks=[PSPCallback(lam=0.0, entropy_weight=weight, entropy_temperature=temperature), ProgressBar(bar)],
        logger=False,
        accelerator="cpu",
        devices=1,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    data = TensorDataset(images.images, images.labels)
    trainer.fit(network, DataLoader(data, batch_size=50, shuffle=True))
    return network.eval()


def potentials_of(network: DigitsLeNet, images: Tensor) -> dict[str, Tensor]:
    """The potentials of every layer."""
    with torch.no_grad(), record_potentials(network) as potentials:
        network(images)
    return dict(potentials)


def transfer_error(task: Task, network: DigitsLeNet) -> float:
    """Error in per cent of a linear classifier of the digits 5 to 9 on the frozen last hidden layer."""
    train_set, test_set = task.train.of_source(False), task.test.of_source(False)
    features = [F.relu(potentials_of(network, part.images)["fc1"]).numpy() for part in (train_set, test_set)]
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    classifier.fit(features[0], train_set.labels.numpy())
    return 100 * (1 - classifier.score(features[1], test_set.labels.numpy()))


def measure(task: Task, weight: float, temperature: float, seed: int, bar: tqdm) -> Run:
    """Does both trainings of a setting."""
    network = train(task, task.train, weight, temperature, seed, bar)
    potentials = potentials_of(network, task.test.images)
    error = (potentials["fc2"].argmax(dim=1) != task.test.labels).double().mean().item()
    of_source = train(task, task.train.of_source(True), weight, temperature, seed, bar)
    return Run(
        task.name,
        weight,
        temperature,
        seed,
        error=100 * error,
        transfer_error=transfer_error(task, of_source),
        entropy={
            layer: psp_entropy(z, task.test.labels, 10).item() for layer, z in potentials.items() if layer != "fc2"
        },
        z2={layer: z.square().mean().item() for layer, z in potentials.items()},
    )


def load(path: Path) -> list[Run]:
    """The runs that are done."""
    return [Run(**entry) for entry in json.loads(path.read_text())] if path.exists() else []


def save(runs: Sequence[Run], path: Path) -> None:
    """Writes them so that a stop in mid-write leaves the file as it was."""
    new = path.with_suffix(".new")
    new.write_text("[\n" + ",\n".join(json.dumps(asdict(run)) for run in runs) + "\n]\n")
    new.replace(path)


def spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation."""
    deviation = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "–"
    return f"{statistics.mean(values):.2f} ± {deviation}"


def table(runs: Sequence[Run]) -> str:
    """One line a setting, in Markdown."""
    layers = list(runs[0].entropy)
    columns = ["data", "T", "entropy_weight", "seeds", "error (%)", "transfer error (%)"]
    columns += [f"entropy {layer} (bits)" for layer in layers] + ["⟨z²⟩"]
    lines = [columns, ["---"] * len(columns)]
    for setting in dict.fromkeys((run.task, run.temperature, run.entropy_weight) for run in runs):
        same = [run for run in runs if (run.task, run.temperature, run.entropy_weight) == setting]
        name, temperature, weight = setting
        cells = [name, f"{temperature:g}", f"{weight:g}", str(len(same))]
        cells += [spread([run.error for run in same]), spread([run.transfer_error for run in same])]
        cells += [spread([run.entropy[layer] for run in same]) for layer in layers]
        lines.append([*cells, spread([statistics.mean(run.z2.values()) for run in same])])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def settings(tasks: Sequence[Task], done: Sequence[Run]) -> list[tuple[Task, float, float, int]]:
    """What is left to do."""
    known = {(run.task, run.entropy_weight, run.temperature, run.seed) for run in done}
    return [
        (task, weight, temperature, seed)
        for task in tasks
        for temperature, weights in task.weights.items()
        for weight in weights
        for seed in range(task.seeds)
        if (task.name, weight, temperature, seed) not in known
    ]


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="folder of MNIST, as torchvision stores it; without it the digits alone"
    )
    parser.add_argument("--seeds", type=positive_integer, default=3, help="trainings of each setting on the digits")
    parser.add_argument("--mnist-seeds", type=positive_integer, default=3, help="the same on MNIST")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "output" / "entropy_study", help="folder of the results"
    )
    arguments = parser.parse_args()
    if arguments.data is not None and not (arguments.data / "MNIST").is_dir():
        parser.error(f"--data {arguments.data} has no folder MNIST")
    return arguments


def main() -> None:
    """Runs what is left to do behind one progress bar, then prints the table and draws the figure."""
    arguments = parse_arguments()
    silence_lightning()
    for message in (".*is smaller than the logging interval", ".*have no `val_dataloader`"):
        warnings.filterwarnings("ignore", message=message)
    torch.set_num_threads(1)  # so small a network gains nothing from a second core
    tasks = [digits_task(arguments.seeds)]
    if arguments.data is not None:
        tasks.append(mnist_task(arguments.data, arguments.mnist_seeds))
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "results.json"
    runs = load(path)
    left = settings(tasks, runs)
    with tqdm(total=sum(2 * task.epochs for task, *_ in left), unit="epoch") as bar:
        for task, weight, temperature, seed in left:
            bar.set_description(f"{task.name}, weight {weight:g}, seed {seed}")
            runs.append(measure(task, weight, temperature, seed, bar))
            save(runs, path)
    text = table(runs)
    (arguments.output / "table.md").write_text(f"{CAPTION}\n\n{text}")
    print(f"\n{text}")
    draw(runs, arguments.output / "entropy_study.png")


if __name__ == "__main__":
    main()
