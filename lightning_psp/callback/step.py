"""What a step has shown, and what steps have shown together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lightning_psp.callback.layer_metrics import LayerSums
from lightning_psp.functional.totals import Total


@dataclass(frozen=True)
class StepLayers:
    """The layers of a step, each once and in order of call.

    Args:
        seen: every layer, chosen or not.
        chosen: those that are to be penalised and measured.
        left_out: those to be chosen whose potentials are complex, sparse or nested.
        fused: modules left out whose potentials could not be seen.
        is_empty: whether a potential without values was seen.
    """

    seen: tuple[str, ...]
    chosen: tuple[str, ...]
    left_out: tuple[str, ...]
    fused: tuple[str, ...]
    is_empty: bool


@dataclass(frozen=True)
class Additions:
    """The layers to whose gradients something is added in a backward pass.

    Args:
        penalised: those with a term of the penalty.
        with_entropy: those with a part in the entropy term.
        missed: those of steps that have ended, to whose gradients nothing can be added any more.
        is_outside: whether the backward pass is one of manual optimisation outside the training step.
        saw_empty_batch: whether a potential without values was seen in the step.
    """

    penalised: tuple[str, ...]
    with_entropy: tuple[str, ...]
    missed: tuple[str, ...]
    is_outside: bool
    saw_empty_batch: bool


@dataclass(frozen=True)
class Step:
    """What a step has shown.

    Args:
        layers: its layers.
        sums: for each chosen layer the sum of z² over its passes and the number of values.
        lam: λ, 0 in evaluations.
        penalty: λR, summed over the backward passes.
        entropy_term: the entropy term, summed over the backward passes.
        loss: the user's loss, as its size summed over the backward passes; None before any.
        not_hidden: the output layers.
        output_sizes: their numbers of units.
        logit_sizes: the same of those that enter a loss's own softmax or sigmoid.
        samples: values of potentials for histograms, by layer.
        unsampled: layers inside compiled functions, whose values do not come out for histograms.
        unseen: what to tell of what could not be seen.
    """

    layers: StepLayers
    sums: LayerSums
    lam: float
    penalty: Total
    entropy_term: Total
    loss: Total | None
    not_hidden: tuple[str, ...]
    output_sizes: frozenset[int]
    logit_sizes: frozenset[int]
    samples: Mapping[str, Tensor]
    unsampled: tuple[str, ...]
    unseen: str

    @property
    def penalty_share(self) -> Total:
        """λR over the size of the loss; 0 where there was no backward pass, and with it no penalty."""
        return 0.0 if self.loss is None else _ratio(self.penalty, self.loss)


class Seen:
    """What the steps since the beginning of a watch have shown together."""

    def __init__(self) -> None:
        """Has seen no step."""
        self.has_trained = False
        self.saw_empty_batch = False
        self.lam = 0.0  # of the last training step
        self._last: StepLayers | None = None  # what was taken in last
        # In order of call.
        self.layers: dict[str, None] = {}
        self.chosen: dict[str, None] = {}
        self.left_out: dict[str, None] = {}
        self.fused: dict[str, None] = {}
        self.unsampled: dict[str, None] = {}
        self.penalised: set[str] = set()
        self.with_entropy: set[str] = set()

    def add_training(self, step: Step) -> None:
        """Takes in a training step."""
        self.has_trained = True
        self.lam = step.lam
        self.add_layers(step.layers)
        self.unsampled.update(dict.fromkeys(step.unsampled))

    def add_layers(self, layers: StepLayers) -> None:
        """Takes in the layers of a step."""
        if layers == self._last:
            return
        self._last = layers
        self.saw_empty_batch = self.saw_empty_batch or layers.is_empty
        self.layers.update(dict.fromkeys(layers.seen))
        self.chosen.update(dict.fromkeys(layers.chosen))
        self.left_out.update(dict.fromkeys(layers.left_out))
        self.fused.update(dict.fromkeys(layers.fused))

    def add_additions(self, additions: Additions) -> None:
        """Takes in what is added in a backward pass."""
        self.penalised.update(additions.penalised)
        self.with_entropy.update(additions.with_entropy)


def _ratio(part: Total, whole: Total) -> Total:
    if isinstance(part, Tensor) or isinstance(whole, Tensor) or whole != 0.0:
        return part / whole
    return math.inf if part else math.nan
