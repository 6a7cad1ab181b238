"""The soft PSP-entropy of the hidden layers as a term beside the loss.

Like the penalty it needs no graph of its own. In the forward pass the graded states of a potential are summed over the
samples of each class. Before the backward pass these sums give the slope of the entropy by the probability of each unit
in each class, and where the gradient passes the potential, the slope of a sample's class times the slope of its state
is added to it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_psp.functional.binary_entropy import binary_entropy
from lightning_psp.functional.totals import Total, add_up, read_on_processor
from lightning_psp.gradient.arriving import Arriving
from lightning_psp.gradient.class_states import ClassStates
from lightning_psp.gradient.compiled_tap import AnyTap, CompiledTap
from lightning_psp.gradient.tap import Tap


class EntropyTerm:
    """The term in one backward pass: the weight times the mean over layers of their soft entropy.

    Args:
        layers: the passes of each hidden layer.
        weight: the weight.

    Raises:
        NotImplementedError: if a layer runs in a compiled function.
        ValueError: if the potentials of a layer do not have the samples of the batch in their first dimension, or if
            its passes differ in shape.
    """

    def __init__(self, layers: dict[str, list[AnyTap]], weight: float) -> None:
        self.layers = [*layers]
        self._entropies = [_LayerEntropy(layer, passes) for layer, passes in layers.items()]
        self._weight = weight

    def value(self) -> Total:
        """The term."""
        if not self._entropies:
            return 0.0
        return self._weight / len(self._entropies) * add_up([entropy.value() for entropy in self._entropies])

    def arm(self, scale: float, arriving: Arriving) -> None:
        """Has the gradient of `scale` times the term added in the next backward pass."""
        for entropy in self._entropies:
            entropy.arm(self._weight / len(self._entropies) * scale, arriving)


class _LayerEntropy:
    """The soft entropy of a layer, whose passes count as one batch."""

    def __init__(self, layer: str, passes: list[AnyTap]) -> None:
        self._taps = [tap for tap in passes if not isinstance(tap, CompiledTap)]
        if len(self._taps) < len(passes):
            raise NotImplementedError(
                f"The potentials of layer {layer!r} lie inside a function made by `torch.compile`, which does not give"
                " the entropy term what it needs of them. Train without `torch.compile`, put"
                " `torch.compiler.disable` around the part of the network that has the layer, or leave the layer out"
                f" with exclude=({layer!r},)."
            )
        parts: dict[int, list[Tap]] = {}
        for tap in self._taps:
            parts.setdefault(tap.potential.part, []).append(tap)
        self._parts = [(taps, *_observed(layer, taps)) for taps in parts.values()]
        self._units = sum(probabilities.shape[1] for _, probabilities, _ in self._parts)

    def value(self) -> Total:
        """The mean over units, in bits."""
        totals = [binary_entropy(probabilities).sum() for _, probabilities, _ in self._parts]
        return read_on_processor(torch.stack(totals).sum() / self._units)

    def arm(self, factor: float, arriving: Arriving) -> None:
        """Has the gradient of `factor` times the entropy added in the next backward pass."""
        for taps, p, observations in self._parts:
            slopes = (1 - p).log2_().sub_(p.log2()).masked_fill_((p <= 0) | (p >= 1), 0.0)
            slopes.mul_(factor / self._units).div_(observations)
            for tap in taps:
                tap.arm_entropy(slopes, arriving)


def _observed(layer: str, taps: list[Tap]) -> tuple[Tensor, Tensor]:
    """The probability of each unit of a part of a layer in each class, and the number of observations behind it."""
    states = [tap.states for tap in taps if tap.states is not None]
    sums = [_sums(layer, state) for state in states]
    if any(state.shape != states[0].shape for state in states):
        shapes = ", ".join(str([*state.shape]) for state in states)
        raise ValueError(
            f"The passes of layer {layer!r} in this step have different shapes: {shapes}. The entropy of their"
            f" units, which entropy_weight asks for, is not defined; leave the layer out with exclude=({layer!r},)."
        )
    observations = states[0].classes.counts.to(sums[0].device)[:, None] * len(states)
    return torch.stack(sums).sum(dim=0) / observations, observations


def _sums(layer: str, states: ClassStates) -> Tensor:
    if states.sums is None:
        raise ValueError(
            f"The potentials of layer {layer!r} have the shape {[*states.shape]} and the batch has"
            f" {len(states.classes.labels)} class labels: the entropy term, which entropy_weight asks for, needs the"
            f" samples of the batch in dimension 0. Leave the layer out with exclude=({layer!r},)."
        )
    return states.sums
