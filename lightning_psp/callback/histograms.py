"""Distributions of weights and potentials in TensorBoard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

# As many values of a layer as a histogram needs; sorting all potentials would take longer than the step.
SAMPLE_SIZE = 50_000


@torch.no_grad()
def sample(potential: Tensor) -> Tensor:
    """At most 50,000 values, evenly spaced over the tensor, on the CPU."""
    flat = potential.detach().reshape(-1)
    stride = -(-flat.numel() // SAMPLE_SIZE)
    return flat[::stride].float().cpu()


def write_histograms(trainer: Trainer, module: LightningModule, potentials: dict[str, Tensor]) -> None:
    """Writes the distributions of all weights and of the given potentials to the trainer's TensorBoard loggers.

    Weights are the parameters of two or more dimensions, written as `psp_weights/<parameter>`; potentials are written
    as `psp_potentials/<layer>`.
    """
    experiments: list[Any] = [getattr(logger, "experiment", None) for logger in trainer.loggers]
    writers = [experiment for experiment in experiments if hasattr(experiment, "add_histogram")]
    if not writers:
        rank_zero_warn(
            "PSPCallback(histograms=True) needs a TensorBoardLogger in the Trainer: no histogram is written."
        )
    for writer in writers:
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                writer.add_histogram(f"psp_weights/{name}", sample(parameter), trainer.global_step)
        for layer, values in potentials.items():
            writer.add_histogram(f"psp_potentials/{layer}", values, trainer.global_step)
