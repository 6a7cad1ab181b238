"""LeNet-5 on MNIST and Fashion-MNIST as in the first paper: no regularisation, ℓ2, dropout and PSP.

    python examples/reproduce_lenet5.py --data FOLDER [--sets MNIST FashionMNIST] [--results FOLDER] ...

The sets must lie in the data folder as torchvision stores them, or be downloaded with --download. SGD without
momentum, learning rate 0.1, batches of 100, 50 epochs. Every training leaves a JSON file with the test error, losses
and ⟨z²⟩ of each epoch, and the trained weights beside it; what is done is skipped, and a training that was broken off
goes on at its last whole epoch, with the same result. `paper_tables.py` makes tables and pictures of the JSON files,
and `gradient_split.py` reads the weights.

The weight decay of ℓ2 is the one of `WEIGHT_DECAYS` with the lowest error on 10,000 held-out training images after ten
epochs: the mean over the last three of them, for one seed; of equal ones the strongest. λ of PSP is the paper's, and
dropout switches off half of the hidden units. The errors are those after the last epoch, on the test set.
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from tqdm import tqdm

from lightning_psp import PSPCallback
from support.classifier import Classifier
from support.distributions import potential_histograms, weight_histograms
from support.images import MNIST, FashionMNIST
from support.networks import LeNet5
from support.resumable import PROGRESS_FORMAT, silence_lightning, train_once

SETS = {"MNIST": MNIST, "FashionMNIST": FashionMNIST}
TECHNIQUES = ("psp", "none", "dropout", "l2")
WEIGHT_DECAYS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
SWEEP_EPOCHS = 10
SWEEP_HELD_OUT = 10_000


@dataclass(frozen=True)
class Training:
    """What tells one training from the others."""

    set: str
    technique: str
    seed: int
    epochs: int
    learning_rate: float = 0.1
    batch_size: int = 100
    lam: float = 0.0
    reduction: str = "mean"
    weight_decay: float = 0.0
    dropout: float = 0.0
    held_out: int = 0  # training images to evaluate on; with 0 that is the test set

    @property
    def file(self) -> str:
        """Name of the result's file."""
        name = f"{self.set}_{self.technique}_seed{self.seed}"
        return f"sweep_{name}_{self.weight_decay:g}.json" if self.held_out else f"{name}.json"

    @property
    def weights_file(self) -> str:
        """Name of the file of the trained weights."""
        return self.file.removesuffix("json") + "pt"


class Reproduction:
    """The trainings of one call, one after the other.

    Args:
        options: The command line.
        bar: Progress bar that counts epochs.
    """

    def __init__(self, options: argparse.Namespace, bar: tqdm) -> None:
        self.options = options
        self.bar = bar

    def run(self, training: Training) -> dict[str, Any]:
        """Train, or read what was trained before."""
        self.bar.set_description(training.file.removesuffix(".json"))

        def make() -> tuple[LightningModule, LightningDataModule, list[Callback]]:
            # On a CPU, channels last takes a third off the time of a step.
            network = LeNet5(dropout=training.dropout).to(memory_format=torch.channels_last)
            module = Classifier(
                network,
                learning_rate=training.learning_rate,
                weight_decay=training.weight_decay,
            )
            data = SETS[training.set](
                self.options.data,
                download=self.options.download,
                batch_size=training.batch_size,
                held_out=training.held_out,
            )
            # With lam=0 the callback only watches: ⟨z²⟩ is logged for all techniques alike. No table has entropies.
            return module, data, [PSPCallback(lam=training.lam, reduction=training.reduction, entropy=())]

        return train_once(
            self.options.results / training.file,
            asdict(training),
            make,
            bar=self.bar,
            accelerator=self.options.accelerator,
            measure=partial(measure, self.options.results / training.weights_file),
        )

    def trainings(self, name: str, technique: str) -> Iterator[Training]:
        """All seeds of one technique on one set."""
        strength: dict[str, float] = {}
        if technique == "psp":
            strength = {"lam": 1e-3}
        elif technique == "dropout":
            strength = {"dropout": 0.5}
        elif technique == "l2":
            strength = {"weight_decay": self.choose_weight_decay(name)}
        for seed in range(self.options.seeds):
            yield Training(name, technique, seed, self.options.epochs, **strength)

    def choose_weight_decay(self, name: str) -> float:
        """Choose ℓ2's strength by the error on held-out training images: of equal errors the strongest."""
        errors = {}
        for weight_decay in WEIGHT_DECAYS:
            training = Training(name, "l2", 0, SWEEP_EPOCHS, weight_decay=weight_decay, held_out=SWEEP_HELD_OUT)
            # Rounded, for sums of the same errors may differ in the last bit.
            errors[weight_decay] = round(mean(epoch["error"] for epoch in self.run(training)["epochs"][-3:]), 6)
        return min(errors, key=lambda weight_decay: (errors[weight_decay], -weight_decay))


def measure(path: Path, module: Classifier, data: LightningDataModule) -> dict[str, Any]:
    """Save the trained weights to ``path``, and count them and the potentials of the images evaluated on."""
    torch.save(module.network.state_dict(), path)
    return {"weights": weight_histograms(module), "potentials": potential_histograms(module, data)}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Train LeNet-5 without regularisation, with ℓ2, dropout and PSP, as in the first paper.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets, as torchvision stores them")
    parser.add_argument("--download", action="store_true", help="download the sets that are not there")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="sets, in order")
    parser.add_argument("--techniques", nargs="+", choices=TECHNIQUES, default=TECHNIQUES, help="in order")
    parser.add_argument("--epochs", type=int, default=50, help="epochs of each training")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each technique")
    parser.add_argument("--accelerator", default="auto", help="accelerator of the Trainer")
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "output" / "lenet5", help="folder of the JSON files"
    )
    return parser.parse_args()


def main() -> None:
    """Run all trainings behind one progress bar."""
    options = parse_arguments()
    options.results.mkdir(parents=True, exist_ok=True)
    silence_lightning()
    torch.set_num_threads(1)  # sharing so small a network between cores costs more than it saves
    epochs = len(options.techniques) * options.seeds * options.epochs
    if "l2" in options.techniques:
        epochs += len(WEIGHT_DECAYS) * SWEEP_EPOCHS
    with tqdm(total=len(options.sets) * epochs, unit="epoch", bar_format=PROGRESS_FORMAT) as bar:
        reproduction = Reproduction(options, bar)
        for name in options.sets:
            for technique in options.techniques:
                for training in reproduction.trainings(name, technique):
                    reproduction.run(training)


if __name__ == "__main__":
    main()
