"""Adding gradients of the penalty and of the entropy term to those that pass potentials, without touching the loss.

The penalty's gradient with respect to a potential z is a number times z (or times the mean of z over the batch). It is
added where the gradient of the loss passes z on its way back, so that the penalty needs no graph of its own: no square,
no product and no further accumulation over activations. The entropy term is told in `entropy_term`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lightning_psp.capture.graph import Edge, ReachedGraph, reach
from lightning_psp.functional.reductions import RULES, Reduction
from lightning_psp.functional.totals import Total, read_on_processor
from lightning_psp.gradient.arriving import Arriving
from lightning_psp.gradient.batch_means import BatchMean, BatchMeans, Part
from lightning_psp.gradient.compiled_tap import AnyTap, disarm
from lightning_psp.gradient.earlier_steps import EarlierSteps
from lightning_psp.gradient.entropy_term import EntropyTerm
from lightning_psp.gradient.loss_scale import LossScale
from lightning_psp.torch_private.autograd import hooks_of
from lightning_psp.torch_private.tensors import version_of


class LayerTerm:
    """The term of λR of one layer in one backward pass.

    Args:
        taps: the layer's passes, and their parts.
        reduction: reduction of the penalty.
        weight: the factor on the layer's term.
        means: the means over the batch, where the reduction needs them.
    """

    def __init__(
        self, taps: list[AnyTap], reduction: Reduction, weight: float, means: Mapping[Part, BatchMean]
    ) -> None:
        by_part: dict[int, list[AnyTap]] = {}
        for tap in taps:
            by_part.setdefault(tap.potential.part, []).append(tap)
        self._weight = weight
        found = [means.get((taps[0].layer, part)) for part in by_part]
        parts = [*by_part.values()]
        self._parts = list(zip(parts, RULES[reduction].divisors(parts), found, strict=True))

    def summands(self) -> Iterator[tuple[float, Total]]:
        """What adds up to the term, with the weight of each; after the backward pass, which takes sums on its way."""
        for passes, divisor, mean in self._parts:
            sums = [tap.square_sum for tap in passes] if mean is None else [mean.values.square().sum()]
            for total in sums:
                yield self._weight / divisor, read_on_processor(total)

    def arm(self, scale: float, arriving: Arriving) -> None:
        """Has the gradient of `scale` times the term added in the next backward pass."""
        for tap, alpha, direction in self._additions(scale):
            tap.arm(alpha, direction, arriving)

    def arm_to_measure(self, scale: float) -> Iterator[Callable[[], None]]:
        """Has the gradient of `scale` times the term added in every backward pass, until what it yields is called."""
        for tap, alpha, direction in self._additions(scale):
            yield tap.arm_to_measure(alpha, direction)

    def _additions(self, scale: float) -> Iterator[tuple[AnyTap, float, Tensor | None]]:
        """What is added to the gradient of each potential: a number times a tensor, or times itself if None."""
        for passes, divisor, mean in self._parts:
            direction, samples = (None, 1.0) if mean is None else mean
            for tap in passes:
                yield tap, 2.0 * self._weight / (divisor * samples) * scale, direction


class Terms(NamedTuple):
    """What is added to the loss of one backward pass.

    `penalty` holds the terms of λR: one for each layer with potentials between trained parameters and this loss that
    were not penalised before. `entropy` is the term of the hidden ones among these layers, None if it is not asked for.
    `missed` are the layers of potentials that nothing is added to, for their step has ended.
    """

    penalty: dict[str, LayerTerm]
    entropy: EntropyTerm | None
    missed: tuple[str, ...]


class Injector:
    """Adds the gradients of λR and of the entropy term to the backward passes of one training step.

    Args:
        reduction: reduction of the penalty.
        layer_factor: gives a layer's factor on λ.
        entropy_weight: weight of the entropy term.
        means: takes the means over the batch, where the reduction needs them.
    """

    def __init__(
        self,
        reduction: Reduction,
        layer_factor: Callable[[str], float],
        entropy_weight: float,
        means: BatchMeans,
    ) -> None:
        self._reduction = reduction
        self._layer_factor = layer_factor
        self._entropy_weight = entropy_weight
        self._means = means
        self._earlier_steps = EarlierSteps()
        self._armed: list[AnyTap] = []
        self._loss_handle: RemovableHandle | None = None
        # The layers of potentials that no later backward pass of the step may come by, and why.
        self._spoilt: dict[Edge, tuple[str, str]] = {}
        self.is_armed = False
        self._takes_some = False  # whether the backward pass was asked for the gradients of some parameters alone

    def arm(self, loss: Tensor, taps: list[AnyTap], lam: float, scale: LossScale) -> Terms:
        """Prepares the backward pass that is about to start from `loss`.

        Args:
            loss: the tensor whose `backward` is about to be called.
            taps: all potentials of the step so far.
            lam: λ of this step.
            scale: the factor by which the loss was already multiplied (loss scaling, accumulation).

        Raises:
            NotImplementedError: if an earlier backward pass through a potential was for some parameters alone, or
                failed.
        """
        self.is_armed = True
        graph = reach(loss)
        self._refuse_spoilt(graph)
        layers = _live_layers(graph, taps)
        missed = self._earlier_steps.layers_in(graph)
        terms = Terms(self._penalty_terms(layers, lam), self._entropy_term(layers), missed)
        if not layers:
            return terms
        arriving = Arriving(scale.correction)
        witness, version = loss.detach(), version_of(loss)

        def note(gradient: Tensor) -> None:
            if version_of(witness) != version:
                raise RuntimeError(
                    "The loss was overwritten after PSPCallback had been told of it, by a hook `on_before_backward`,"
                    " which would change the penalty, too. Change the loss in `training_step`."
                )
            arriving.note(gradient)

        self._loss_handle = loss.register_hook(note)
        # Hooks of the user change the gradient of the loss, not that of the penalty: they run after this one.
        hooks = hooks_of(loss)
        assert self._loss_handle is not None
        for number in [*hooks]:
            if number != self._loss_handle.id:
                hooks[number] = hooks.pop(number)
        self._armed = [tap for passes in layers.values() for tap in passes]
        for term in terms.penalty.values():
            term.arm(scale.number, arriving)
        if terms.entropy is not None:
            terms.entropy.arm(scale.number, arriving)
        return terms

    def measure(
        self,
        loss: Tensor,
        taps: list[AnyTap],
        lam: float,
        scale: float,
        parameters: Sequence[Tensor],
        norm: Callable[[Sequence[Tensor | None]], float],
    ) -> tuple[float, float]:
        """The norms of the gradients of the loss and of λR, before the backward pass, which is then as ever.

        Both come from passes through the graph that only return what they find. In the second one nothing arrives at
        the loss, so that what arrives at the parameters is the gradient of λR alone, free of the rounding that a
        difference would have.

        Args:
            loss: the tensor whose `backward` is about to be called.
            taps: all potentials of the step so far.
            lam: λ.
            scale: the factor by which the loss was already multiplied.
            parameters: those that gradients are taken by.
            norm: gives the norm of the gradients by all parameters, None for one that has none.
        """
        of_loss = norm(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)) / scale
        terms = self._penalty_terms(_live_layers(reach(loss), taps), lam)
        with ExitStack() as stack:
            for term in terms.values():
                for end in term.arm_to_measure(scale):
                    stack.callback(end)
            nothing = torch.zeros_like(loss)
            found = torch.autograd.grad(loss, parameters, nothing, retain_graph=True, allow_unused=True)
        return of_loss, norm(found) / scale

    def _penalty_terms(self, layers: dict[str, list[AnyTap]], lam: float) -> dict[str, LayerTerm]:
        if lam == 0.0:
            return {}
        if RULES[self._reduction].averages_layers and layers:
            lam /= len(layers)
        # A layer whose factor is 0 counts in L and has no term.
        factors = {layer: self._layer_factor(layer) for layer in layers}
        penalised = {layer: passes for layer, passes in layers.items() if factors[layer] != 0.0}
        means = self._means.take(penalised) if RULES[self._reduction].squares_means else {}
        return {
            layer: LayerTerm(passes, self._reduction, lam * factors[layer], means)
            for layer, passes in penalised.items()
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

    def disarm(self, has_failed: bool = False) -> None:
        """Ends the backward pass: each potential is penalised once."""
        disarm(self._armed)
        for tap in self._armed:
            if has_failed or self._takes_some:
                self._spoilt.update(dict.fromkeys(tap.edges(), (tap.layer, _FAILED if has_failed else _TAKES_SOME)))
            tap.release()
        self._armed = []
        self.is_armed = self._takes_some = False
        if self._loss_handle is not None:
            self._loss_handle.remove()
            self._loss_handle = None

    def start_pass(self, takes_some: bool) -> None:
        """Notes that the backward pass starts, and whether it is for some parameters alone.

        Raises:
            NotImplementedError: if such a pass came before, as in a `backward` of the LightningModule's own.
        """
        if self._takes_some:
            raise NotImplementedError(
                f"A further backward pass would have no penalty on its potentials, for the first one {_TAKES_SOME}"
            )
        self._takes_some = takes_some

    def forget(self, taps: Sequence[AnyTap]) -> None:
        """Ends the training step.

        Args:
            taps: its potentials.
        """
        self.disarm()
        self._spoilt = {}
        self._earlier_steps.note(taps)

    def _refuse_spoilt(self, graph: ReachedGraph) -> None:
        layer, reason = next((why for edge, why in self._spoilt.items() if edge in graph.edges), ("", ""))
        if reason:
            raise NotImplementedError(
                f"A second backward pass through the potentials of layer {layer!r} would have no penalty on them, for"
                f" the first one {reason}"
            )


_TAKES_SOME = (
    "took it for some parameters alone, with the argument `inputs`. Take the gradients of all parameters in one"
    " backward pass, or call the network anew for each."
)
_FAILED = "ended with an error. Call the network anew before another backward pass."


def _live_layers(graph: ReachedGraph, taps: list[AnyTap]) -> dict[str, list[AnyTap]]:
    """The layers whose potentials lie between trained parameters and the loss, with these potentials."""
    layers: dict[str, list[AnyTap]] = {}
    for tap in taps:
        if tap.is_live(graph):
            layers.setdefault(tap.layer, []).append(tap)
    return layers
