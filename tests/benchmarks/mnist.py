"""LeNet-5 on MNIST with the setting of the first paper: error and ⟨z²⟩ on the test set after each epoch.

    python tests/benchmarks/mnist.py --data FOLDER --epochs 3

MNIST must lie under `--data` as torchvision stores it (`MNIST/raw`). SGD without momentum, learning rate 0.1, batches
of 100, inputs normalised by 0.1307 and 0.3081, λ = 1e-3.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset
from torchvision.datasets import MNIST
from tqdm import tqdm

from lightning_psp import PSPCallback


class LeNet5(LightningModule):
    """20 and 50 filters, 500 hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images `[batch, 1, 28, 28]`."""
        x = functional.max_pool2d(functional.relu(self.conv1(images)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        return self.fc2(functional.relu(self.fc1(x.flatten(1))))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Cross entropy of a batch."""
        images, labels = batch
        return functional.cross_entropy(self(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Error in per cent."""
        images, labels = batch
        self.log("error", 100 * (self(images).argmax(1) != labels).float().mean(), batch_size=len(labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


class PrintEpochs(Callback):
    """Prints a line an epoch."""

    def __init__(self, label: str, progress: tqdm[None]) -> None:
        self._label = label
        self._progress = progress

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = trainer.callback_metrics
        layers = "".join(f"{metrics[f'psp_z2_val/{layer}']:>9.2f}" for layer in ("conv1", "conv2", "fc1", "fc2"))
        epoch = trainer.current_epoch + 1
        self._progress.write(
            f"{self._label:<10}{epoch:>6}{metrics['error']:>12.2f}{metrics['psp/z2_val']:>9.2f}{layers}"
        )
        self._progress.update()


def load(root: Path, train: bool) -> DataLoader[tuple[Tensor, ...]]:
    """All images as one tensor, in batches of 100."""
    data = MNIST(root, train=train)
    images = ((data.data.float() / 255 - 0.1307) / 0.3081).unsqueeze(1)
    dataset = TensorDataset(images, data.targets)
    sampler = RandomSampler(dataset) if train else SequentialSampler(dataset)
    return DataLoader(dataset, sampler=BatchSampler(sampler, 100, drop_last=False), batch_size=None)


def main() -> None:
    """Trains without and with the penalty."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.* is deprecated")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    train, test = load(options.data, train=True), load(options.data, train=False)
    print(f"{'technique':<10}{'epoch':>6}{'error (%)':>12}{'⟨z²⟩':>9}{'conv1':>9}{'conv2':>9}{'fc1':>9}{'fc2':>9}")
    with tqdm(total=2 * options.epochs, unit="epoch", leave=False) as progress:
        for label, lam in (("none", 0.0), ("PSP", 1e-3)):
            seed_everything(options.seed, verbose=False)
            trainer = Trainer(
                max_epochs=options.epochs,
                callbacks=[PSPCallback(lam=lam), PrintEpochs(label, progress)],
                accelerator="cpu",
                logger=False,
                num_sanity_val_steps=0,
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=False,
            )
            trainer.fit(LeNet5(), train, test)


if __name__ == "__main__":
    main()
