"""How large the penalty's gradient is beside the loss's, and a callback that keeps it so."""

import time
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.func import functional_call

from lightning_psp import PSPCallback, psp_penalty, record_potentials
from lightning_psp.analysis import psp_gradient_parts

KEPT = 0.9  # share of the measurements before in a running mean: the gradients of single batches differ


def gradient_norms(network: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[float, float]:
    """Compute the Euclidean norms of the gradients of cross-entropy and penalty by all trained parameters.

    One forward pass in the mode that the network is in, two backward passes; running statistics of batch norm stay.

    Args:
        network: Computes logits ``[batch, classes]``.
        inputs: A batch.
        labels: Its classes ``[batch]``.
    """
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with record_potentials(network) as potentials:
        logits = functional_call(network, buffers, (inputs,))
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    loss = torch.autograd.grad(F.cross_entropy(logits, labels), parameters, retain_graph=True, allow_unused=True)
    penalty = torch.autograd.grad(psp_penalty(potentials), parameters, allow_unused=True)
    return _norm(loss), _norm(penalty)


def balanced_layers(network: nn.Module, inputs: Tensor) -> dict[str, float]:
    """Compute a factor for each layer with which all layers' parts of the penalty have gradients of one norm.

    Their mean is that of the gradient of the whole penalty as it is: with the factors, λ keeps its size. The L parts
    then have an L-th of that norm each, so that their sum has at most the norm of before.

    Args:
        network: Computes logits ``[batch, classes]``.
        inputs: A batch.
    """
    parts = psp_gradient_parts(network, (inputs,))
    whole, of_layers = parts.total.norm(), parts.norms.norm(dim=0)
    factors = whole / len(parts.layers) / of_layers
    return dict(zip(parts.layers, factors.tolist(), strict=True))


class KeepShare(Callback):
    """Sets λ such that the gradient of λR has a share ρ of the norm of the loss's gradient.

    Measured on the batch of the first step and, where asked for, on that of every further `every` steps; λ is then the
    ratio of running means of both norms.

    Args:
        psp: The callback whose λ is set.
        share: ρ.
        every: Steps between two measurements; without, one measurement serves for the whole training.
    """

    def __init__(self, psp: PSPCallback, share: float, every: int | None = None) -> None:
        self.psp = psp
        self.share = share
        self.every = every
        self.lams: list[float] = []
        self.seconds = 0.0
        self._norms: tuple[float, float] = (0.0, 0.0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Measure, where it is time to."""
        step = trainer.global_step
        if step and (self.every is None or step % self.every):
            return
        start = time.perf_counter()
        norms = gradient_norms(pl_module.network, *batch)
        if step:
            norms = tuple(KEPT * old + (1 - KEPT) * new for old, new in zip(self._norms, norms, strict=True))
        self._norms = norms
        self.psp.lam = self.share * norms[0] / norms[1]
        self.lams.append(self.psp.lam)
        self.seconds += time.perf_counter() - start

    def state_dict(self) -> dict[str, Any]:
        """What was measured, for a training that was broken off."""
        return {"lams": self.lams, "seconds": self.seconds, "norms": self._norms}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a training where a checkpoint left it."""
        self.lams, self.seconds, self._norms = (state_dict[name] for name in ("lams", "seconds", "norms"))
        self.psp.lam = self.lams[-1]


def _norm(gradients: Iterable[Tensor | None]) -> float:
    return torch.stack([gradient.norm() for gradient in gradients if gradient is not None]).norm().item()
