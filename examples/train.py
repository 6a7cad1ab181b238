"""Train a network with or without PSP, as configuration files and the command line say.

    python examples/train.py fit --data.root FOLDER --config examples/configs/mnist.yaml
        --config examples/configs/networks/lenet5.yaml --config examples/configs/techniques/lenet/psp.yaml

(on one line). A row of the first paper's tables is a data set's file, a network's and a technique's: see
configs/README.md. `--psp.lam 0.01` and its like change single values, `--print_config` shows all of them. TensorBoard's
logs, the checkpoint and the configuration go to `lightning_logs` in the current folder.
"""

from collections.abc import Sequence

from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_psp import PSPCallback
from support.classifier import Classifier


class TrainCLI(LightningCLI):
    """LightningCLI with the arguments of ``PSPCallback`` under ``psp``; by default it only watches."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callback to every training."""
        parser.add_lightning_class_args(PSPCallback, "psp")
        parser.set_defaults({"psp.lam": 0.0})


def make_cli(arguments: Sequence[str] | None = None, run: bool = True) -> TrainCLI:
    """Read configuration and command line, and train where ``run`` is true.

    Args:
        arguments: The command line; by default the process's own.
        run: Whether to run the subcommand that the command line starts with; without it there is none.
    """
    return TrainCLI(
        Classifier,
        LightningDataModule,
        subclass_mode_data=True,
        run=run,
        args=None if arguments is None else list(arguments),
    )


if __name__ == "__main__":
    make_cli()
