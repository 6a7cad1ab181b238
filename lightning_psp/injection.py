"""Adding the penalty's gradient to the one that passes a potential, without touching the loss.

The penalty's gradient with respect to a potential z is a number times z (or times the mean of z over the batch). It is
added where the gradient of the loss passes z on its way back, so that the penalty needs no graph of its own: no square,
no product and no further accumulation over activations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from lightning_psp.capture import Potential
from lightning_psp.graph import reach
from lightning_psp.penalty import Reduction, accumulation_dtype, count_units
from lightning_psp.statistics import square_sum


class Tap:
    """What is kept of one potential between forward and backward.

    Args:
        z: the potential.
        potential: its layer.
        in_place: whether the nonlinearity is about to overwrite it.
        reduction: reduction of the penalty, or None to keep the statistic alone.
    """

    def __init__(self, z: Tensor, potential: Potential[Tap], in_place: bool, reduction: Reduction | None) -> None:
        self.potential = potential
        self.elements = z.numel()
        self.batch_size = z.shape[0]
        self.observations = self.elements // count_units(z, potential.unit_dim)
        self.edge: tuple[Node | None, int] = (z.grad_fn, z.output_nr)
        self.is_penalised = False
        self.value: Tensor | None = None
        self.owns_value = False
        self.batch_sum: Tensor | None = None
        self._version = 0
        self._handle: RemovableHandle | None = None
        with torch.no_grad():
            if reduction is not None and z.grad_fn is not None:
                if reduction == "squared_mean":
                    self.batch_sum = z.sum(dim=0, dtype=accumulation_dtype(z.dtype))
                elif in_place:
                    self.value, self.owns_value = z.detach().clone(), True
                else:
                    self.value, self._version = z.detach(), z._version
            self.square_sum = square_sum(z if self.value is None else self.value)

    @property
    def layer(self) -> str:
        """Name of the layer."""
        return self.potential.layer

    def check_unchanged(self) -> None:
        """Raises a RuntimeError if the potential was overwritten after its nonlinearity had read it."""
        if self.value is not None and not self.owns_value and self.value._version != self._version:
            raise RuntimeError(
                f"The potentials of layer {self.layer!r} were overwritten in place after their nonlinearity had read"
                " them, so that their penalty cannot be computed. Write the operation that follows out of place"
                " (`x = x + y` for `x += y`), or leave the layer out with the argument `exclude`."
            )

    def arm(self, alpha: float, direction: Tensor | None, arriving: Callable[[], float | Tensor]) -> None:
        """Makes the next backward pass add `alpha · arriving() · direction` to the gradient of the potential.

        Args:
            alpha: the coefficient that is known before the backward pass.
            direction: the tensor to add, broadcast over the batch; the potential itself if None.
            arriving: gives the gradient that arrived at the loss.
        """
        node, output_nr = self.edge
        assert node is not None
        self.is_penalised = True

        def add_penalty(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
            value, out = (self.value, self.value if self.owns_value else None)
            self.value = None
            step = value if direction is None else direction
            assert step is not None
            if torch.is_grad_enabled():
                raise NotImplementedError(
                    "backward(create_graph=True) cannot differentiate the penalty on potentials a second time. Leave"
                    " the callback out and add `lam * psp_penalty(potentials)` of `record_potentials` to the loss."
                )
            gradient = gradients[output_nr]
            if gradient is None:
                gradient = torch.zeros_like(step)
            changed = list(gradients)
            changed[output_nr] = _add_scaled(gradient, step, alpha, arriving(), out)
            return tuple(changed)

        self._handle = node.register_prehook(add_penalty)

    def release(self) -> None:
        """Lets go of the graph and of the potential."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self.edge = (None, 0)
        self.potential.results.clear()
        self.value = None
        self.batch_sum = None


def _add_scaled(gradient: Tensor, step: Tensor, alpha: float, arrived: float | Tensor, out: Tensor | None) -> Tensor:
    step = step.to(gradient.dtype)
    if isinstance(arrived, Tensor):
        # A tensor on an accelerator is not read, for the step would have to wait for it.
        return torch.addcmul(gradient, step, arrived.to(gradient), value=alpha)
    return torch.add(gradient, step, alpha=alpha * arrived, out=out)


@dataclass(frozen=True)
class Penalised:
    """What one backward pass adds.

    Args:
        value: λR, a scalar.
        layers: names of the layers covered.
    """

    value: Tensor
    layers: tuple[str, ...]


class Injector:
    """Adds the gradient of λR to the backward passes of one training step.

    Args:
        reduction: reduction of the penalty.
        layer_factor: gives a layer's factor on λ.
    """

    def __init__(self, reduction: Reduction, layer_factor: Callable[[str], float]) -> None:
        self._reduction = reduction
        self._layer_factor = layer_factor
        self._armed: list[Tap] = []
        self._arriving: float | Tensor = 1.0
        self._loss_handle: RemovableHandle | None = None
        self.is_armed = False

    def arm(self, loss: Tensor, taps: list[Tap], lam: float, scale: float) -> Penalised | None:
        """Prepares the backward pass that is about to start from `loss`.

        Args:
            loss: the tensor whose `backward` is about to be called.
            taps: all potentials of the step so far.
            lam: λ of this step.
            scale: the factor by which the loss was already multiplied (loss scaling, accumulation).

        Returns:
            The penalty, or None where no potential lies between trained parameters and this loss.
        """
        self.is_armed = True
        graph = reach(loss)
        layers: dict[str, list[Tap]] = {}
        for tap in taps:
            if tap.is_penalised or not graph.holds(tap.edge):
                continue
            if any(edge[0] is not None and edge in graph.edges for edge in tap.potential.results):
                layers.setdefault(tap.layer, []).append(tap)
        if not layers:
            return None
        assert loss.grad_fn is not None
        self._loss_handle = loss.grad_fn.register_prehook(self._note_arriving(loss.output_nr))
        terms: list[Tensor] = []
        for layer, taps in layers.items():
            weight = lam * self._layer_factor(layer)
            if self._reduction == "mean":
                weight /= len(layers)
            term, alpha, direction = _layer_terms(taps, self._reduction)
            terms.append(weight * term)
            for tap in taps:
                tap.check_unchanged()
                tap.arm(weight * alpha * scale, direction, lambda: self._arriving)
                self._armed.append(tap)
        value = torch.stack([term.to(terms[0].device) for term in terms]).sum()
        return Penalised(value, tuple(layers))

    def _note_arriving(self, output_nr: int) -> Callable[[tuple[Tensor | None, ...]], None]:
        def note(gradients: tuple[Tensor | None, ...]) -> None:
            gradient = gradients[output_nr]
            if gradient is not None:
                total = gradient.detach().sum()
                self._arriving = total.item() if total.device.type == "cpu" else total

        return note

    def disarm(self) -> None:
        """Ends the backward pass: each potential is penalised once."""
        for tap in self._armed:
            tap.release()
        self._armed = []
        self._arriving = 1.0
        self.is_armed = False
        if self._loss_handle is not None:
            self._loss_handle.remove()
            self._loss_handle = None


def _layer_terms(taps: list[Tap], reduction: Reduction) -> tuple[Tensor, float, Tensor | None]:
    """The value of a layer's term of R, and its gradient as a factor and a direction (None: the potential)."""
    if reduction == "squared_mean":
        batch = sum(tap.batch_size for tap in taps)
        sums = [tap.batch_sum for tap in taps if tap.batch_sum is not None]
        if any(other.shape != sums[0].shape for other in sums):
            raise ValueError(
                f"The passes of layer {taps[0].layer!r} in this step have different shapes:"
                f" {', '.join(str([*total.shape]) for total in sums)}. Their mean over the batch, which"
                " reduction='squared_mean' needs, is not defined; use reduction='mean'."
            )
        mean = torch.stack(sums).sum(dim=0) / batch
        return mean.square().mean(), 2.0 / (mean.numel() * batch), mean
    total = torch.stack([tap.square_sum for tap in taps]).sum()
    if reduction == "mean":
        elements = sum(tap.elements for tap in taps)
        return total / elements, 2.0 / elements, None
    observations = sum(tap.observations for tap in taps)
    return total / (2.0 * observations), 1.0 / observations, None
