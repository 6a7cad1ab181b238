"""What post-synaptic potential regularisation does, seen in about two minutes on a CPU.

Trains a small LeNet on scikit-learn's handwritten digits three times over: without
regularisation, with weight decay (ℓ2), and with PSP. Prints the test error, the test loss and ⟨z²⟩
of each, draws error and ⟨z²⟩ over the training, and leaves TensorBoard logs.

    python examples/quickstart.py [--epochs N] [--seeds N] [--output FOLDER] [--lam λ] ...
"""

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from tqdm import tqdm

from lightning_psp import PSPCallback
from lightning_psp.plotting import plot_curves
from support.data import Digits
from support.models import DigitsLeNet
from support.options import positive_integer
from support.resumable import PROGRESS_FORMAT, silence_lightning
from support.tables import markdown_table, mean_and_deviation

HEADER = ("technique", "test error (%)", "test loss", "⟨z²⟩ on test set")


@dataclass(frozen=True)
class Technique:
    """One way to regularise: ``folder`` names its logs, ``label`` its line in table and picture."""

    folder: str
    label: str
    lam: float = 0.0
    weight_decay: float = 0.0


@dataclass
class Run:
    """What one training leaves: one value an epoch on the validation set, then the test set's."""

    val_error: list[float] = field(default_factory=list)
    val_z2: list[float] = field(default_factory=list)
    test_error: float = float("nan")
    test_loss: float = float("nan")
    test_z2: float = float("nan")


class CurveRecorder(Callback):
    """Keeps the validation error (%) and ⟨z²⟩ of every epoch, moves the progress bar and shows them behind it."""

    def __init__(self, run: Run, bar: tqdm) -> None:
        self.run = run
        self.bar = bar

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning has validated this epoch by now, so its values are in ``callback_metrics``."""
        self.run.val_error.append(100 * trainer.callback_metrics["val_error"].item())
        self.run.val_z2.append(trainer.callback_metrics["psp/z2_val"].item())
        self.bar.set_postfix_str(f"error {self.run.val_error[-1]:.1f} %, ⟨z²⟩ {self.run.val_z2[-1]:.2f}", refresh=False)
        self.bar.update()


def train(technique: Technique, seed: int, epochs: int, data: Digits, logs: Path, bar: tqdm) -> Run:
    """Train and test one network; with one ``seed``, all techniques start from the same weights."""
    seed_everything(seed, verbose=False)
    model = DigitsLeNet(weight_decay=technique.weight_decay)
    logger = TensorBoardLogger(logs, name=technique.folder, version=f"seed_{seed}", default_hp_metric=False)
    # Curves of an earlier call in the same folder would be drawn over this one's.
    shutil.rmtree(logger.log_dir, ignore_errors=True)

    run = Run()
    trainer = Trainer(
        max_epochs=epochs,
        # With lam=0 the callback only watches: ⟨z²⟩ is logged for all three techniques alike.
        callbacks=[PSPCallback(lam=technique.lam), CurveRecorder(run, bar)],
        logger=logger,
        log_every_n_steps=10,
        accelerator="cpu",  # so small a network gains nothing from a GPU
        devices=1,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(model, datamodule=data)
    (tested,) = trainer.test(model, datamodule=data, verbose=False)
    run.test_error = 100 * tested["test_error"]
    run.test_loss = tested["test_loss"]
    run.test_z2 = tested["psp/z2_test"]
    return run


def results_rows(runs: dict[Technique, list[Run]]) -> list[list[str]]:
    """Label, test error, test loss and ⟨z²⟩ of each technique."""
    return [
        [
            technique.label,
            mean_and_deviation([run.test_error for run in repeats]),
            mean_and_deviation([run.test_loss for run in repeats], digits=3),
            mean_and_deviation([run.test_z2 for run in repeats]),
        ]
        for technique, repeats in runs.items()
    ]


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print the results as an aligned table."""
    header, *lines = (f"{label:<28}{error:>16}{loss:>17}{z2:>19}" for label, error, loss, z2 in (HEADER, *rows))
    print("", header, "─" * len(header), *lines, sep="\n")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Compare no regularisation, weight decay and PSP on 8×8 handwritten digits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--epochs", type=positive_integer, default=100, help="epochs of each training")
    parser.add_argument("--seeds", type=positive_integer, default=3, help="trainings of each technique")
    # Both strengths were chosen beforehand by the validation error.
    parser.add_argument("--lam", type=float, default=0.3, help="strength λ of PSP")
    parser.add_argument("--weight-decay", type=float, default=3e-3, help="strength of ℓ2")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent / "output",
        help="folder of the picture and the TensorBoard logs",
    )
    return parser.parse_args()


def main() -> None:
    """Run all trainings behind one progress bar, then print the table and draw the curves."""
    arguments = parse_arguments()
    techniques = [
        Technique("none", "no regularisation"),
        Technique(
            "l2",
            f"ℓ2 (weight decay {arguments.weight_decay:g})",
            weight_decay=arguments.weight_decay,
        ),
        Technique("psp", f"PSP (λ = {arguments.lam:g})", lam=arguments.lam),
    ]
    silence_lightning()
    torch.set_num_threads(1)  # sharing so small a network between cores costs more than it saves
    data = Digits()
    logs = arguments.output / "tensorboard"

    runs: dict[Technique, list[Run]] = {technique: [] for technique in techniques}
    total = len(techniques) * arguments.seeds * arguments.epochs
    with tqdm(total=total, unit="epoch", bar_format=f"{PROGRESS_FORMAT}{{postfix}}") as bar:
        for technique in techniques:
            for seed in range(arguments.seeds):
                bar.set_description(f"{technique.folder:>4}, seed {seed}")
                runs[technique].append(train(technique, seed, arguments.epochs, data, logs, bar))

    rows = results_rows(runs)
    print_table(rows)
    (arguments.output / "quickstart.md").write_text(markdown_table(HEADER, rows))
    picture = arguments.output / "quickstart.png"
    figure, _ = plot_curves(
        {
            technique.label: [{"val_error": run.val_error, "psp/z2_val": run.val_z2} for run in repeats]
            for technique, repeats in runs.items()
        },
        titles={"val_error": "Error on unseen digits"},
        units={"val_error": "wrongly classified (%)"},
    )
    figure.savefig(picture)
    print(f"\nPicture: {shorten(picture)}")
    print("\nTo see every layer's ⟨z²⟩, start TensorBoard:")
    print(f"    {tensorboard_command(logs)}")
    print("and open it with one colour for each technique:")
    print(f"    {tensorboard_address([technique.folder for technique in techniques])}")
    print("psp/z2_val is the network's; psp_z2_val/conv1, conv2, fc1 and fc2 are its layers'.")


def tensorboard_command(logs: Path) -> str:
    """The shell command that shows ``logs``, with the TensorBoard of the running Python."""
    python = shorten(Path(sys.executable))
    return shlex.join([python, "-m", "tensorboard.main", "--logdir", shorten(logs)])


def tensorboard_address(folders: Sequence[str]) -> str:
    """The address at which TensorBoard shows ⟨z²⟩ on validation data, with one colour for the runs of each folder."""
    query = {"runColorGroup": f"regex:({'|'.join(folders)})", "tagFilter": "z2_val"}
    return f"http://localhost:6006/?{urlencode(query)}#timeseries"


def shorten(path: Path) -> str:
    """Write ``path`` relative to the current folder if it lies in it, else in full."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


if __name__ == "__main__":
    main()
