"""Which layers' potentials the PSP gradient of each weight of a LeNet comes from.

    python examples/gradient_split.py [--output FOLDER]
    python examples/gradient_split.py --data FOLDER --trainings FOLDER

By default a small LeNet on scikit-learn's handwritten digits, which needs no download. With `--data`, where MNIST must
lie as torchvision stores it, and `--trainings`, where `reproduce_lenet5.py` has left its results: LeNet-5.

The gradient is split three times: before training, after training without PSP, and after training with PSP; each with
the reductions "mean", which the experiments of the first paper use, and "sum", its Eq. 7. All on 500 test images.
Writes a picture, a table and a JSON file for each split.
"""

import argparse
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_psp import PSPCallback
from lightning_psp.analysis import GradientParts, psp_gradient_parts
from lightning_psp.plotting import plot_gradient_parts
from support.data import Digits
from support.images import MNIST
from support.models import DigitsLeNet
from support.networks import LeNet5
from support.options import positive_integer
from support.resumable import silence_lightning
from support.tables import markdown_table

IMAGES = 500
REDUCTIONS = ("mean", "sum")
DIGITS_LAM, DIGITS_EPOCHS = 0.3, 60

# A network's label, and what is split with each reduction.
Splits = Mapping[str, Mapping[str, GradientParts]]


def train(module: LightningModule, data: LightningDataModule, lam: float, epochs: int) -> None:
    """Train with PSP, or without where λ is 0."""
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=[PSPCallback(lam=lam, log_layers=False, entropy=())] if lam else [],
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, data)


def networks_on_digits(epochs: int) -> tuple[dict[str, nn.Module], Tensor]:
    """Untrained, trained and trained with PSP, and test images."""
    data = Digits()
    untrained = DigitsLeNet()
    networks = {"untrained": untrained}
    for label, lam in (("trained", 0.0), (f"trained with PSP (λ = {DIGITS_LAM:g})", DIGITS_LAM)):
        networks[label] = copy.deepcopy(untrained)
        train(networks[label], data, lam, epochs)
    return networks, data.test_set.tensors[0][:IMAGES]


def networks_on_mnist(data_folder: Path, trainings: Path) -> tuple[dict[str, nn.Module], Tensor]:
    """Untrained, trained and trained with PSP, and test images."""
    networks: dict[str, nn.Module] = {"untrained": LeNet5()}
    for label, technique in (("trained", "none"), ("trained with PSP", "psp")):
        networks[label] = LeNet5()
        networks[label].load_state_dict(torch.load(trainings / f"MNIST_{technique}_seed0.pt", weights_only=True))
    data = MNIST(data_folder)
    images, labels = data.load(train=False)
    return networks, data.on_after_batch_transfer((images[:IMAGES], labels[:IMAGES]), 0)[0]


def split(networks: Mapping[str, nn.Module], images: Tensor) -> Splits:
    """Split the gradient of every network with every reduction."""
    return {
        label: {name: psp_gradient_parts(network.eval(), images, reduction=name) for name in REDUCTIONS}
        for label, network in networks.items()
    }


def split_table(splits: Splits) -> str:
    """Format the shares of the weights in per cent."""
    first = next(iter(splits.values()))[REDUCTIONS[0]]
    rows: list[Sequence[str]] = []
    for reduction in REDUCTIONS:
        for label, parts in ((label, of_network[reduction]) for label, of_network in splits.items()):
            for name, norms, shares in zip(parts.parameters, parts.norms, parts.shares, strict=True):
                if name.endswith("weight"):
                    own = int(norms.nonzero()[0])
                    cells = [f"{100 * share:.1f}" if norm else "" for norm, share in zip(norms, shares, strict=True)]
                    rows.append([label, reduction, name, *cells, f"{100 * shares[own + 1 :].sum():.1f}"])
    return markdown_table(["network", "reduction", "parameter", *first.layers, "later layers"], rows)


def draw(splits: Splits, title: str, path: Path) -> None:
    """Draw a column a network and a row a reduction, and save the picture."""
    figure = Figure(figsize=(4.3 * len(splits) + 1, 3.1 * len(REDUCTIONS) + 0.9), dpi=150, layout="constrained")
    axes = figure.subplots(len(REDUCTIONS), len(splits), sharex=True, sharey=True)
    for column, (label, of_network) in enumerate(splits.items()):
        for row, reduction in enumerate(REDUCTIONS):
            is_last = column == len(splits) - 1
            plot_gradient_parts(of_network[reduction], axes[row, column], colorbar=is_last)
            axes[row, column].set_title(f'{label}, "{reduction}"', fontsize=11)
            axes[row, column].label_outer()
    figure.suptitle(title, fontweight="bold")
    caption = "Signed shares in the PSP gradient of each weight (%). Each row adds up to 100; grey: no dependence."
    figure.supxlabel(caption, fontsize=9, color="#555555")
    figure.savefig(path)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder in which torchvision keeps MNIST")
    parser.add_argument("--trainings", type=Path, help="folder of the weights that reproduce_lenet5.py has left")
    parser.add_argument(
        "--epochs", type=positive_integer, help=f"of a training on the digits (default: {DIGITS_EPOCHS})"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: 0)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent / "output" / "gradient_split",
        help="folder of the results (default: %(default)s)",
    )
    options = parser.parse_args()
    if (options.data is None) != (options.trainings is None):
        parser.error("LeNet-5 on MNIST needs both --data and --trainings")
    if options.epochs and options.trainings:
        parser.error("LeNet-5 on MNIST is trained already: --epochs is for the digits")
    return options


def main() -> None:
    """Train, split, print the table and draw the picture."""
    options = parse_arguments()
    silence_lightning()
    torch.set_num_threads(1)  # sharing so small a network between cores costs more than it saves
    seed_everything(options.seed, verbose=False)
    if options.trainings is None:
        name, title = "digits", "LeNet on 8×8 digits"
        networks, images = networks_on_digits(options.epochs or DIGITS_EPOCHS)
    else:
        name, title = "lenet5", "LeNet-5 on MNIST"
        networks, images = networks_on_mnist(options.data, options.trainings)
    splits = split(networks, images)
    table = split_table(splits)
    options.output.mkdir(parents=True, exist_ok=True)
    for number, of_network in enumerate(splits.values()):
        for reduction, parts in of_network.items():
            state = ("untrained", "trained", "psp")[number]
            parts.save(options.output / f"{name}_{state}_{reduction}.json")
    (options.output / f"{name}.md").write_text(table)
    draw(splits, f"Which layers' potentials move the weights: {title}", options.output / f"{name}.png")
    print(f"Shares of each layer's potentials in the PSP gradient (%)\n\n{table}\nPicture and JSON: {options.output}")


if __name__ == "__main__":
    main()
