"""What the package makes of a case's step: layers, their ⟨z²⟩, and gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_psp import PSPCallback, psp_penalty, record_potentials
from tests.support.layers.case import LayerCase
from tests.support.reference import norm
from tests.support.small import quiet_trainer

PREFIX = "network."


class Training(LightningModule):
    """Trains a network with a case's step, and keeps the gradients of each backward pass."""

    def __init__(self, case: LayerCase, network: nn.Module) -> None:
        super().__init__()
        self.network, self.case = network, case
        self.criterion = None if case.criterion is None else case.criterion()
        self.gradients: list[dict[str, Tensor]] = []

    def training_step(self, batch: Any, batch_index: int = 0) -> Tensor:
        further = () if self.criterion is None else (self.criterion,)
        return self.case.step(self.network, batch, *further)

    def validation_step(self, batch: Any, batch_index: int) -> None:
        self.training_step(batch)

    def on_after_backward(self) -> None:
        self.gradients.append(gradients_of(self.network))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.01)


def gradients_of(network: nn.Module) -> dict[str, Tensor]:
    return {
        name.replace("_orig_mod.", ""): torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in network.named_parameters()
        if p.requires_grad
    }


def fit(
    case: LayerCase,
    callback: PSPCallback,
    validates: bool = False,
    prepare: Callable[[Training], object] = lambda module: None,
    epochs: int = 1,
) -> tuple[Training, Trainer]:
    """Trains for one step an epoch, and validates on the same batch."""
    network, batch = case.build()
    module = Training(case, network)
    prepare(module)
    data = DataLoader([batch], batch_size=None)
    trainer = quiet_trainer(callback, num_sanity_val_steps=0, max_epochs=epochs)
    trainer.fit(module, data, data if validates else None)
    return module, trainer


def recorded(
    case: LayerCase, by_module: bool = False, is_compiled: bool = False, **choices: Any
) -> tuple[nn.Module, Tensor, dict[str, Tensor]]:
    """The network, which may be compiled, the loss and the potentials of one step outside of a Trainer."""
    network, batch = case.build()
    module = Training(case, network).double()
    if is_compiled:
        network.compile(backend="aot_eager")
    with record_potentials(module if by_module else network, **choices) as potentials:
        loss = module.training_step(batch)
    return network, loss, potentials


def recorded_alone(case: LayerCase, with_gradient: bool = False, **choices: Any) -> dict[str, Tensor]:
    """The potentials of a call of the network without a loss."""
    network, batch = case.build()
    with nullcontext() if with_gradient else torch.no_grad(), record_potentials(network, **choices) as potentials:
        case.alone(network, batch)
    return potentials


def gradients_in_lightning(case: LayerCase, reduction: str, lam: float, **arguments: Any) -> dict[str, Tensor]:
    module, _ = fit(case, PSPCallback(lam=lam, reduction=reduction, **arguments))
    (gradients,) = module.gradients
    return gradients


def gradients_by_network(case: LayerCase, reduction: str, lam: float, **choices: Any) -> dict[str, Tensor]:
    network, loss, potentials = recorded(case, **choices)
    (loss + lam * psp_penalty(potentials, reduction)).backward()
    return gradients_of(network)


def gradients_by_module(case: LayerCase, reduction: str, lam: float, **choices: Any) -> dict[str, Tensor]:
    network, loss, potentials = recorded(case, by_module=True, **choices)
    (loss + lam * psp_penalty(potentials, reduction)).backward()
    return gradients_of(network)


def logged_layers(trainer: Trainer, stage: str = "train") -> dict[str, float]:
    """Layer name to logged ⟨z²⟩."""
    start = f"psp_z2_{stage}/"
    logged = trainer.callback_metrics
    return {key.removeprefix(start): value.item() for key, value in logged.items() if key.startswith(start)}


def recorded_layers(
    potentials: Mapping[str, Tensor], known: Mapping[str, object], prefix: str = ""
) -> dict[str, float]:
    """Layer name to ⟨z²⟩: entries `name:1` are of the layer `name`, unless a layer is known to be called so."""
    values: dict[str, list[Tensor]] = {}
    for key, z in potentials.items():
        layer = key
        if key.removeprefix(prefix) not in known:
            base, _, number = key.rpartition(":")
            layer = base if base and number.isdigit() else key
        values.setdefault(layer, []).append(z.detach().flatten())
    return {layer: torch.cat(found).square().mean().item() for layer, found in values.items()}


def assert_layers(found: Mapping[str, float], wanted: Mapping[str, float], prefix: str = "", rel: float = 1e-9) -> None:
    """The same layers with the same ⟨z²⟩; a layer whose name is left open may have any name."""
    named = {prefix + name: value for name, value in wanted.items() if not name.startswith("?")}
    if len(named) == len(wanted):
        assert set(found) == set(named)
    assert len(found) == len(wanted), sorted(found)
    assert set(found) >= set(named)
    for name, value in named.items():
        assert found[name] == pytest.approx(value, rel=rel), name
    others = sorted(value for name, value in found.items() if name not in named)
    assert others == pytest.approx(sorted(v for k, v in wanted.items() if k.startswith("?")), rel=rel)


def assert_gradients(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-8) -> None:
    length = norm(wanted)
    for name, g in wanted.items():
        error = (found[name] - g).norm()
        assert error <= tolerance * max(g.norm(), 1e-4 * length), name
