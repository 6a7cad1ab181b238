"""CIFAR-10 as in the first paper and as in its authors' code: each network with each technique.

    python examples/reproduce_cifar10.py --data FOLDER [--jpeg] [--networks resnet18 ...] [--techniques none ...] ...

The recipes are those of `configs/`, the same as `train.py` has; `--epochs` shortens them, with the drops of the
learning rate at the same shares. Techniques ending in `_code` have the batches of the authors' code, all others those
of the paper. The set must lie in the data folder as torchvision stores it or, with --jpeg, as archives of JPEGs, or be
downloaded with --download.

With --images all techniques train on one draw of so many training images, the same number of each class, and the names
of their files and the tables tell the number. Processes that are given different networks, techniques or, with
--first-seed, seeds may run side by side on one folder of results.

Every training leaves a JSON file with the test error, losses and ⟨z²⟩ of each epoch; what is done is skipped, and a
training that was broken off goes on at its last whole epoch. `paper_tables.py` makes tables and pictures of the files.
The errors to report are those after the last epoch; they are the test set's, as in the paper.
"""

import argparse
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from tqdm import tqdm

from support.resumable import PROGRESS_FORMAT, silence_lightning, train_once
from train import TrainCLI, make_cli

CONFIGS = Path(__file__).parent / "configs"
NETWORKS = {
    "resnet18": "ResNet-18",
    "mobilenetv2": "MobileNetV2",
    "all_cnn_c": "All-CNN-C",
    "resnet32": "ResNet-32",
}
# Data set's and technique's file of each technique.
TECHNIQUES = {
    "none": ("cifar10", "none"),
    "l1": ("cifar10", "cifar10/l1"),
    "l2": ("cifar10", "cifar10/l2"),
    "dropout": ("cifar10", "cifar10/dropout"),
    "label_smoothing": ("cifar10", "label_smoothing"),
    "psp_paper": ("cifar10", "cifar10/psp_paper"),
    "psp_eq7": ("cifar10", "cifar10/psp_eq7"),
    "none_code": ("cifar10_code", "none"),
    "psp_code": ("cifar10_code", "cifar10/psp_code"),
}


def read_recipe(network: str, technique: str, options: argparse.Namespace, *arguments: str) -> TrainCLI:
    """Read the recipe of a network and a technique as `train.py` does.

    Args:
        network: One of ``NETWORKS``.
        technique: One of ``TECHNIQUES``.
        options: The command line.
        arguments: Further arguments of `train.py`.
    """
    data_file, technique_file = TECHNIQUES[technique]
    of_network = CONFIGS / "techniques" / f"{technique_file}_{network}.yaml"
    files = [
        CONFIGS / f"{data_file}.yaml",
        CONFIGS / "networks" / f"{network}.yaml",
        of_network if of_network.exists() else CONFIGS / "techniques" / f"{technique_file}.yaml",
    ]
    return make_cli(
        [
            *(f"--config={file}" for file in files),
            f"--data.root={options.data}",
            f"--data.download={options.download}",
            f"--data.jpeg={options.jpeg}",
            f"--data.train_images={options.images}",
            # `train_once` has a Trainer of its own.
            "--trainer.accelerator=cpu",
            "--trainer.logger=false",
            "--trainer.enable_progress_bar=false",
            "--psp.entropy=[]",  # the results hold none
            *arguments,
        ],
        run=False,
    )


def describe(network: str, technique: str, options: argparse.Namespace, cli: TrainCLI) -> dict[str, Any]:
    """What tells a training from others, but for its seed, as `paper_tables.py` reads it."""
    model, data, psp = cli.config.model, cli.config.data.init_args, cli.config.psp
    return {
        "set": "CIFAR10-jpeg" if options.jpeg else "CIFAR10",
        "network": NETWORKS[network],
        "technique": technique,
        "epochs": options.epochs,
        "milestones": shorten(model.milestones, cli.config.trainer.max_epochs, options.epochs),
        **{name: model[name] for name in ("learning_rate", "momentum", "nesterov")},
        "batch_size": data.batch_size,
        **{name: psp[name] for name in ("lam", "reduction", "output")},
        "include": list(psp.include),
        **{name: model[name] for name in ("weight_decay", "l1", "label_smoothing")},
        "dropout": model.network.init_args.dropout,
        "held_out": data.held_out,
        "train_images": data.train_images,
    }


def shorten(milestones: Sequence[int], recipe_epochs: int, epochs: int) -> list[int]:
    """Move milestones to the same shares of fewer epochs, halves upwards.

    None is before the end of the first epoch: at 0 the learning rate would start at what it drops to.
    """
    return [max(1, (2 * epochs * each + recipe_epochs) // (2 * recipe_epochs)) for each in milestones]


def make(read: Callable[..., TrainCLI], seed: int, milestones: list[int]) -> Callable[[], Any]:
    """Return what makes module, data and callback of a recipe."""

    def make_now() -> tuple[LightningModule, LightningDataModule, list[Callback]]:
        cli = read(f"--seed_everything={seed}", f"--model.milestones={milestones}")
        # Convolutions are quicker so, on a CPU and, in half precision, on a GPU.
        return cli.model.to(memory_format=torch.channels_last), cli.datamodule, [cli.config_init.psp]

    return make_now


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Train networks on CIFAR-10 with the techniques of the first paper.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the set, as torchvision stores it")
    parser.add_argument("--jpeg", action="store_true", help="read the JPEGs in the folder's CIFAR10-jpeg instead")
    parser.add_argument("--download", action="store_true", help="download the set where it is not there")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="networks, in order")
    parser.add_argument("--techniques", nargs="+", choices=TECHNIQUES, default=list(TECHNIQUES), help="in order")
    parser.add_argument("--images", type=int, default=0, help="training images, a multiple of 10; 0: all")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each technique")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first of them; the next have the next")
    parser.add_argument("--epochs", type=int, default=500, help="epochs of each training")
    parser.add_argument("--accelerator", default="auto", help="accelerator of the Trainer")
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "output" / "cifar10", help="folder of the JSON files"
    )
    return parser.parse_args()


def main() -> None:
    """Run all trainings behind one progress bar."""
    options = parse_arguments()
    options.results.mkdir(parents=True, exist_ok=True)
    silence_lightning()
    # This script has a command line of its own, and gives the CLI another.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")
    epochs = len(options.networks) * len(options.techniques) * options.seeds * options.epochs
    with tqdm(total=epochs, unit="epoch", bar_format=PROGRESS_FORMAT) as bar:
        for network in options.networks:
            for technique in options.techniques:
                read = partial(read_recipe, network, technique, options)
                configuration = describe(network, technique, options, read())
                subset = f"-{options.images}images" if options.images else ""
                for seed in range(options.first_seed, options.first_seed + options.seeds):
                    name = f"{configuration['set']}{subset}_{network}_{technique}_seed{seed}"
                    bar.set_description(name)
                    train_once(
                        options.results / f"{name}.json",
                        {**configuration, "seed": seed},
                        make(read, seed, configuration["milestones"]),
                        bar=bar,
                        accelerator=options.accelerator,
                    )


if __name__ == "__main__":
    main()
