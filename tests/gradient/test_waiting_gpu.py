"""No training step on a GPU waits for it because of the callback, by the profiler's trace of its steps."""

from collections import Counter

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from lightning_psp import PSPCallback
from tests.support.waiting import Trained

# The profiler says more than once what it does not know of a machine.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::UserWarning")]

STEPS, SKIPPED = 8, 3
WAITING = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "Memcpy DtoH")


class Reading(nn.Module):
    """Reads a value in its forward pass."""

    def forward(self, x):
        assert x.sum().item() == x.sum().item()
        return x


def network(*further):
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3), nn.GELU(), *further),
        *(nn.Flatten(), nn.Linear(8 * 16, 32), nn.ReLU(), nn.Linear(32, 10)),
    )


class Traced(Callback):
    """Traces the steps behind the first ones, whose values nothing reads yet when the last one is over."""

    def __init__(self):
        self.profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == SKIPPED:
            torch.cuda.synchronize()
            self.profiler.__enter__()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == STEPS - 1:
            self.profiler.__exit__(None, None, None)


def waits(module, *callbacks, precision):
    """How often the traced steps wait, by the name of the call."""
    traced = Traced()
    trainer = Trainer(
        callbacks=[*callbacks, traced],
        max_steps=STEPS + 1,
        accelerator="gpu",
        devices=1,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batch = torch.randn(4, 3, 8, 8, device="cuda"), torch.randint(0, 10, (4,), device="cuda")
    trainer.fit(Trained(module), DataLoader([batch] * (STEPS + 1), batch_size=None))
    names = (event.name for event in traced.profiler.events())
    counts = Counter(call for name in names for call in WAITING if name.startswith(call))
    # The profiler waits for the GPU itself, once, when it ends.
    return {call: counts[call] for call in WAITING}


@pytest.mark.parametrize("reduction", ["mean", "sum", "squared_mean"])
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_no_step_waits(precision, reduction):
    torch.manual_seed(0)
    without = waits(network(), precision=precision)
    assert waits(network(), PSPCallback(reduction=reduction), precision=precision) == without


def test_what_waits_is_noticed():
    without = waits(network(), precision="32-true")
    reads = waits(network(Reading()), precision="32-true")
    assert reads["Memcpy DtoH"] == without["Memcpy DtoH"] + 2 * (STEPS - SKIPPED)
