"""PSP-entropy over validation and test runs: what a callback counts, and when it cannot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from torch import Tensor

from lightning_psp.callback.entropy_counts import EntropyCounts
from lightning_psp.callback.step import Step
from lightning_psp.callback.targets import Target, describe, find_target
from lightning_psp.capture.origin import Potential
from lightning_psp.functional.arguments import check_choice
from lightning_psp.functional.estimate import EntropyEstimate
from lightning_psp.functional.validation import MAX_ORDER, UNITS, Unit
from lightning_psp.lightnings import OnceAFit
from lightning_psp.metrics import PSPEntropy

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

Orders: TypeAlias = Literal["auto"] | Sequence[int]

# The memory that counts may take where they were not asked for.
_MAX_BYTES = 512 * 2**20


class EntropyMeasure:
    """Measures the PSP-entropy of hidden layers over one evaluation after another.

    Args:
        orders: orders of the entropies; ``"auto"`` measures order 1 where that can be had, and says so where not.
        unit: what one neuron is: ``"element"`` or ``"channel"``.
        num_classes: number of classes; None takes it from the output layer.
        target: where the class labels are in a batch.
        say: tells the user what is left out.
    """

    def __init__(self, orders: Orders, unit: Unit, num_classes: int | None, target: Target, say: OnceAFit) -> None:
        _check_orders(orders)
        check_choice("entropy_unit", unit, UNITS)
        self._is_asked_for = orders != "auto"
        self._orders: tuple[int, ...] = (1,) if orders == "auto" else tuple(orders)
        self.unit = unit
        self._num_classes = num_classes
        self._target = target
        self._say = say
        self._waits_for_others = False
        self.release()

    def start(self, trainer: Trainer) -> Mapping[str, Mapping[int, PSPEntropy]]:
        """Starts a new evaluation, and returns what it will fill: the metrics of each layer by order."""
        self.release()
        # An error in one of several processes would leave the others waiting for it.
        self._waits_for_others = trainer.world_size > 1
        return self._counts.metrics

    def release(self) -> None:
        """Lets go of the last evaluation, whose metrics stay with those who have them."""
        max_bytes = None if self._is_asked_for else _MAX_BYTES
        self._counts = EntropyCounts(self._orders, self.unit, self._num_classes, max_bytes)

    @property
    def is_counting(self) -> bool:
        """Whether potentials of the running step are to be counted."""
        return self._counts.is_counting

    def start_batch(self, batch: Any) -> None:
        """Finds the class labels of the batch that is about to be evaluated."""
        if not self._orders or self._counts.problem is not None:
            return
        target = find_target(batch, self._target)
        if target is None:
            self._counts.give_up(
                "no class labels, a tensor [batch] of an integer type, were found in a batch, which is"
                f" {describe(batch)}: say with `target` where they are"
            )
        else:
            self._counts.start_batch(target)
        if not self._waits_for_others:
            self._check()

    def add(self, potential: Potential[Any], z: Tensor) -> None:
        """Counts potentials ``[batch, …]`` of the running step."""
        self._counts.add(potential, z)

    def give_up(self, problem: str) -> None:
        """Measures nothing more in the running evaluation."""
        if self.is_counting:
            self._counts.give_up(problem)

    def discard(self, potential: Potential[Any]) -> None:
        """Forgets what turned out to be no potential of its own."""
        self._counts.discard(potential)

    def end_batch(self, step: Step) -> None:
        """Ends the batch of a step. The number of logits is that of the classes."""
        self._counts.end_batch(step.not_hidden, step.logit_sizes or step.output_sizes)
        allowed = {max(2, size) for size in step.logit_sizes}
        if self._num_classes is not None and self._orders and allowed and self._num_classes not in allowed:
            self._counts.give_up(
                f"Expected argument `num_classes` to be the number of logits, {' or '.join(map(str, sorted(allowed)))},"
                f" but got {self._num_classes}. Without it, the number is taken from them.",
                is_error=True,
            )
        if not self._waits_for_others:
            self._check()

    def values(
        self, trainer: Trainer, stage: str, mean_squares: Mapping[str, float], by_layer: bool
    ) -> dict[str, float]:
        """What to log of the evaluation that has ended.

        Args:
            trainer: the trainer, each process of which has to call this.
            stage: ``"val"`` or ``"test"``.
            mean_squares: ⟨z²⟩ of every layer, where NaN tells of potentials that are NaN.
            by_layer: whether the value of each layer is among the values.
        """
        if not self._orders:
            return {}
        if trainer.world_size > 1:
            self._counts.synchronise(trainer.strategy.root_device)
            self._check()
        # A state was counted for NaN, too.
        broken = {layer for layer, mean_square in mean_squares.items() if math.isnan(mean_square)}
        values: dict[str, float] = {}
        for order in self._orders:
            metrics = {layer: found[order] for layer, found in self._counts.metrics.items() if order in found}
            estimates = {layer: metric.silent_estimate() for layer, metric in metrics.items()}
            self._say_what_is_missing(order, estimates)
            layers = {layer: math.nan if layer in broken else found.value for layer, found in estimates.items()}
            name = "entropy" if order == 1 else f"entropy{order}"
            if layers:
                values[f"psp/{name}_{stage}"] = sum(layers.values()) / len(layers)
            if by_layer:
                values.update({f"psp_{name}_{stage}/{layer}": value for layer, value in layers.items()})
        for layer in broken:
            self._counts.metrics.pop(layer, None)
        empty = self._counts.empty_classes()
        if empty:
            self._say(
                "empty classes",
                f"No sample of the classes {', '.join(map(str, empty))} was seen ({stage}). They contribute nothing to"
                " PSP-entropy.",
            )
        return values

    def _say_what_is_missing(self, order: int, estimates: Mapping[str, EntropyEstimate]) -> None:
        small = self._counts.smaller_than(order)
        if small:
            self._say(
                f"small {order}",
                f"PSP-entropy of order {order} is left out of layers with fewer units: {', '.join(map(repr, small))}.",
                is_warning=False,
            )
        sampled = [found for found in estimates.values() if not found.is_exact]
        if sampled:
            self._say(
                f"sampled {order}",
                f"PSP-entropy of order {order} is the mean over a random sample of {sampled[0].number_of_sets} sets"
                f" of units in {len(sampled)} layers, with a standard error of at most"
                f" {max(found.standard_error for found in sampled):.2g} bits.",
                is_warning=False,
            )

    def _check(self) -> None:
        """Says what cannot be measured, or raises an error where it was asked for."""
        problem, left_out = self._counts.problem, self._counts.left_out
        if problem is not None and self._counts.is_error:
            raise ValueError(problem)
        if problem is not None and self._is_asked_for:
            raise ValueError(f"PSPCallback(entropy={self._orders}) cannot be measured: {problem}. Or pass entropy=().")
        if problem is not None:
            self._say("no entropy measured", f"PSP-entropy is left out: {problem}.", is_warning=False)
        reasons = "; ".join(f"of {layer!r}, {reason}" for layer, reason in left_out.items())
        if left_out and self._is_asked_for:
            raise ValueError(
                f"PSPCallback(entropy={self._orders}) cannot be measured {reasons}. Or leave the layer out with the"
                " argument `exclude`."
            )
        if left_out:
            self._say("no entropy of a layer", f"PSP-entropy is left out {reasons}.", is_warning=False)


def _check_orders(orders: Any) -> None:
    allowed = f"'auto' or a sequence of orders from 1 to {MAX_ORDER}, such as (1, 2), or () for none"
    if orders == "auto":
        return
    if isinstance(orders, str) or not isinstance(orders, Sequence):
        raise TypeError(f"Expected argument `entropy` to be {allowed}, but got {orders!r}.")
    for order in orders:
        if isinstance(order, bool) or not isinstance(order, int):
            raise TypeError(f"Expected argument `entropy` to be {allowed}, but got {orders!r}.")
        if not 1 <= order <= MAX_ORDER:
            raise ValueError(f"Expected argument `entropy` to be {allowed}, but got {orders!r}.")
    if len(set(orders)) < len(orders):
        raise ValueError(f"Expected argument `entropy` to name each order once, but got {orders!r}.")
