"""One small network for one kind of fault, with what its layers are, written out by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.reference import REDUCTIONS, Reduction, layer_term, norm, penalty_of_terms

# Layer name to passes, a pass being the list of its parts. A name that starts with "?" is left open.
Layers = dict[str, list[list[Tensor]]]
Step = Callable[[nn.Module, Any], Tensor]


def one(z: Tensor) -> list[list[Tensor]]:
    return [[z]]


def passes(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    return [[z] for z in tensors]


def parts(*tensors: Tensor) -> list[list[Tensor]]:
    return [list(tensors)]


def affine(layer: Any, x: Tensor) -> Tensor:
    return x @ layer.weight.mT + layer.bias


def mse_loss(y: Tensor, target: Tensor) -> Tensor:
    return ((y - target) ** 2).mean()


def cross_entropy(z: Tensor, labels: Tensor) -> Tensor:
    """Of classes in the last dimension."""
    return (torch.logsumexp(z, -1) - z.gather(-1, labels[..., None])[..., 0]).mean()


def first_input(network: nn.Module, batch: Any) -> Any:
    return network(batch[0])


@dataclass(frozen=True)
class LayerCase:
    """A network, a step, and the loss and layers of that step without any help of the package.

    Args:
        name: of the case.
        network: makes the network.
        batch: makes a batch.
        step: calls the network and gives the loss.
        reference: gives loss and layers, all of them on the path to the loss.
        outputs: which of the layers are output layers.
        reductions: those that the definition settles.
        alone: a call of the network without a loss; None where the definition asks for one.
        validates: whether a run without gradient can tell the same layers: not where the step calls a teacher.
        criterion: a loss module that the LightningModule holds, given to `step` as a third argument.
    """

    name: str
    network: Callable[[], nn.Module]
    batch: Callable[[], Any]
    step: Callable[..., Tensor]
    reference: Callable[[Any, Any], tuple[Tensor, Layers]]
    outputs: tuple[str, ...] = ("head",)
    reductions: tuple[Reduction, ...] = REDUCTIONS
    alone: Callable[[nn.Module, Any], Any] | None = first_input
    validates: bool = True
    criterion: Callable[[], nn.Module] | None = None

    def build(self) -> tuple[nn.Module, Any]:
        """The network in training mode and its batch, the same at each call, in float64."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.network().double().train(), _double(self.batch())

    def __str__(self) -> str:
        return self.name


def _double(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch.double() if batch.is_floating_point() else batch
    return type(batch)(_double(part) for part in batch)


@dataclass(frozen=True)
class Expected:
    """What a case's step has to give: gradients by name of the parameter."""

    loss: Tensor
    mean_squares: dict[str, float]
    penalty: Tensor
    loss_gradients: dict[str, Tensor]
    penalty_gradients: dict[str, Tensor]

    def gradients(self, lam: float) -> dict[str, Tensor]:
        return {name: g + lam * self.penalty_gradients[name] for name, g in self.loss_gradients.items()}

    def balanced_lam(self) -> float:
        """The lam at which the penalty's gradient is as long as the loss's."""
        return (norm(self.loss_gradients) / norm(self.penalty_gradients)).item()


@cache
def expected(case: LayerCase, reduction: Reduction = "mean") -> Expected:
    """The reference of a step; not to be changed, for many tests ask for it."""
    return expected_of_choice(case, reduction)


def expected_of_choice(
    case: LayerCase,
    reduction: Reduction = "mean",
    factors: dict[str, float] | None = None,
    chosen: tuple[str, ...] | None = None,
) -> Expected:
    """The reference of a step; `factors` on layers as in `layer_lam`, `chosen` layers as by `include`."""
    network, batch = case.build()
    loss, layers = case.reference(network, batch)
    if chosen is not None:
        layers = {name: layers[name] for name in chosen}
    terms = [(factors or {}).get(name, 1.0) * layer_penalty(layer, reduction) for name, layer in layers.items()]
    penalty = penalty_of_terms(terms, reduction)
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    return Expected(
        loss.detach(),
        {name: layer_penalty(layer).item() for name, layer in layers.items()},
        penalty.detach(),
        _gradients(loss, trained),
        _gradients(penalty, trained),
    )


def layer_penalty(layer: list[list[Tensor]], reduction: Reduction = "mean") -> Tensor:
    """What a layer counts for in R."""
    return layer_term([list(passes) for passes in zip(*layer, strict=True)], reduction, units)


def units(z: Tensor) -> int:
    """Images have their filters in dimension 1, all else its features in the last one."""
    return z.shape[1] if z.dim() == 4 else z.shape[-1]


def _gradients(value: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(value, list(parameters.values()), retain_graph=True, allow_unused=True)
    return {k: torch.zeros_like(p) if g is None else g for (k, p), g in zip(parameters.items(), found, strict=True)}
