"""Adding gradients of the penalty and of the entropy term to those that pass potentials, without touching the loss.

The penalty's gradient with respect to a potential z is a number times z (or times the mean of z over the batch). It is
added where the gradient of the loss passes z on its way back, so that the penalty needs no graph of its own: no square,
no product and no further accumulation over activations. The entropy term is told in `entropy_term`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lightning_psp.capture.graph import reach
from lightning_psp.functional.reductions import RULES, Reduction
from lightning_psp.functional.totals import Total, add_up, read_on_processor
from lightning_psp.gradient.arriving import Arriving
from lightning_psp.gradient.compiled_tap import CompiledTap
from lightning_psp.gradient.entropy_term import EntropyTerm
from lightning_psp.gradient.tap import Tap
from lightning_psp.torch_private.autograd import hooks_of

AnyTap: TypeAlias = Tap | CompiledTap


class LayerTerm:
    """The term of λR of one layer in one backward pass.

    Args:
        taps: the layer's passes, and their parts.
        reduction: reduction of the penalty.
        weight: the factor on the layer's term.
    """

    def __init__(self, taps: list[AnyTap], reduction: Reduction, weight: float) -> None:
        by_part: dict[int, list[AnyTap]] = {}
        for tap in taps:
            by_part.setdefault(tap.potential.part, []).append(tap)
        self._weight = weight
        parts = [*by_part.values()]
        rule = RULES[reduction]
        means = [_mean_over_batch(passes) if rule.squares_means else None for passes in parts]
        self._parts = list(zip(parts, rule.divisors(parts), means, strict=True))

    def value(self) -> Total:
        """The term; after the backward pass, which takes the sums of squares on its way."""
        terms = []
        for passes, divisor, mean in self._parts:
            if mean is not None:
                terms.append(self._weight / divisor * read_on_processor(mean.square().sum()))
            else:
                terms.append(self._weight / divisor * add_up([read_on_processor(tap.square_sum) for tap in passes]))
        return add_up(terms)

    def arm(self, scale: float, arriving: Arriving) -> None:
        """Has the gradient of `scale` times the term added in the next backward pass."""
        for passes, divisor, mean in self._parts:
            count = divisor if mean is None else divisor * sum(tap.batch_size for tap in passes)
            for tap in passes:
                tap.arm(2.0 * self._weight / count * scale, mean, arriving)


def _mean_over_batch(taps: list[AnyTap]) -> Tensor:
    if len(taps) > 1 and any(isinstance(tap, CompiledTap) for tap in taps):
        raise NotImplementedError(
            f"The passes of layer {taps[0].layer!r} in this step run in a function made by `torch.compile`, which has"
            " the mean over the batch of one pass only, where reduction='squared_mean' needs that of all. Use"
            " reduction='mean' or 'sum', or call the network once with all inputs."
        )
    sums = [tap.batch_sum for tap in taps if tap.batch_sum is not None]
    if any(other.shape != sums[0].shape for other in sums):
        raise ValueError(
            f"The passes of layer {taps[0].layer!r} in this step have different shapes:"
            f" {', '.join(str([*total.shape]) for total in sums)}. Their mean over the batch, which"
            " reduction='squared_mean' needs, is not defined; use reduction='mean'."
        )
    return torch.stack(sums).sum(dim=0) / sum(tap.batch_size for tap in taps)


class Terms(NamedTuple):
    """What is added to the loss of one backward pass.

    `penalty` holds the terms of λR: one for each layer with potentials between trained parameters and this loss that
    were not penalised before. `entropy` is the term of the hidden ones among these layers, None if it is not asked for.
    """

    penalty: dict[str, LayerTerm]
    entropy: EntropyTerm | None


class Injector:
    """Adds the gradients of λR and of the entropy term to the backward passes of one training step.

    Args:
        reduction: reduction of the penalty.
        layer_factor: gives a layer's factor on λ.
        entropy_weight: weight of the entropy term.
    """

    def __init__(self, reduction: Reduction, layer_factor: Callable[[str], float], entropy_weight: float) -> None:
        self._reduction = reduction
        self._layer_factor = layer_factor
        self._entropy_weight = entropy_weight
        self._armed: list[AnyTap] = []
        self._loss_handle: RemovableHandle | None = None
        self.is_armed = False

    def arm(self, loss: Tensor, taps: list[AnyTap], lam: float, scale: float) -> Terms:
        """Prepares the backward pass that is about to start from `loss`.

        Args:
            loss: the tensor whose `backward` is about to be called.
            taps: all potentials of the step so far.
            lam: λ of this step.
            scale: the factor by which the loss was already multiplied (loss scaling, accumulation).
        """
        self.is_armed = True
        graph = reach(loss)
        layers: dict[str, list[AnyTap]] = {}
        for tap in taps:
            if tap.is_live(graph):
                layers.setdefault(tap.layer, []).append(tap)
        terms = Terms(self._penalty_terms(layers, lam), self._entropy_term(layers))
        if not layers:
            return terms
        arriving = Arriving()
        self._loss_handle = loss.register_hook(arriving.note)
        # Hooks of the user change the gradient of the loss, not that of the penalty: they run after this one.
        hooks = hooks_of(loss)
        assert self._loss_handle is not None
        for number in [*hooks]:
            if number != self._loss_handle.id:
                hooks[number] = hooks.pop(number)
        self._armed = [tap for passes in layers.values() for tap in passes]
        for term in terms.penalty.values():
            term.arm(scale, arriving)
        if terms.entropy is not None:
            terms.entropy.arm(scale, arriving)
        return terms

    def _penalty_terms(self, layers: dict[str, list[AnyTap]], lam: float) -> dict[str, LayerTerm]:
        if lam == 0.0:
            return {}
        if RULES[self._reduction].averages_layers and layers:
            lam /= len(layers)
        # A layer whose factor is 0 counts in L and has no term.
        factors = {layer: self._layer_factor(layer) for layer in layers}
        return {
            layer: LayerTerm(passes, self._reduction, lam * factors[layer])
            for layer, passes in layers.items()
            if factors[layer] != 0.0
        }

    def _entropy_term(self, layers: dict[str, list[AnyTap]]) -> EntropyTerm | None:
        if self._entropy_weight == 0.0:
            return None
        hidden = {
            layer: found
            for layer, passes in layers.items()
            if (found := [tap for tap in passes if not tap.potential.is_output])
        }
        return EntropyTerm(hidden, self._entropy_weight)

    def take_sums(self) -> None:
        """Takes the sums of squares of the potentials that the backward pass did not reach."""
        with torch.no_grad():
            for tap in self._armed:
                _ = tap.square_sum

    def disarm(self) -> None:
        """Ends the backward pass: each potential is penalised once."""
        for tap in self._armed:
            tap.release()
        self._armed = []
        self.is_armed = False
        if self._loss_handle is not None:
            self._loss_handle.remove()
            self._loss_handle = None
