"""What is kept of a potential inside a compiled function between forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from torch import Tensor

from lightning_psp.capture.graph import Edge, ReachedGraph
from lightning_psp.capture.origin import Measured, Potential
from lightning_psp.gradient.arriving import Arriving
from lightning_psp.gradient.tap import Tap
from lightning_psp.torch_private.foreach import zero_


class CompiledTap:
    """Counterpart of :class:`~lightning_psp.gradient.tap.Tap` where a compiled function adds the gradient itself.

    Args:
        potential: its layer.
        measured: what the function told of it.
    """

    def __init__(self, potential: Potential[Any], measured: Measured) -> None:
        self.potential = potential
        self.elements, units, self.batch_size = measured.sizes
        self.observations = self.elements // units
        self.square_sum, *others = (tensor.detach() for tensor in measured.tensors)
        self.batch_sum = others[0] if others else None
        self.coefficient = measured.coefficient
        self._sources = measured.sources
        self.is_armed = False

    @property
    def layer(self) -> str:
        """Name of the layer."""
        return self.potential.layer

    def is_live(self, graph: ReachedGraph) -> bool:
        """Whether gradient of the loss arrives at the potential and goes on to a trained parameter."""
        is_trained = self._sources is None or any(graph.holds(edge) for edge in self._sources)
        return self.coefficient is not None and is_trained and any(map(graph.holds, self.potential.results))

    def arm(self, alpha: float, direction: Tensor | None, arriving: Arriving) -> None:
        """Makes the next backward pass add `alpha` times the gradient that arrives at the loss times the potential."""
        assert self.coefficient is not None
        arriving.fill_when_known(self.coefficient, alpha)
        self.is_armed = True

    def arm_to_measure(self, alpha: float, direction: Tensor | None) -> Callable[[], None]:
        """Makes every backward pass add `alpha` times the potential to its gradient, until what it gives is called."""
        coefficient = self.coefficient
        assert coefficient is not None
        # Behind autograd's back, as in `Arriving`.
        coefficient.data.fill_(alpha)

        def end() -> None:
            coefficient.data.zero_()

        return end

    def edges(self) -> list[Edge]:
        """Where its compiled function is in the graph."""
        return [*self.potential.results]

    def preserve(self, z: Tensor) -> None:
        """Needs nothing: the compiled function keeps what it needs."""

    def release(self) -> None:
        """Has later backward passes add nothing, and lets go of the graph."""
        disarm([self])
        self.coefficient = None
        self.potential.results.clear()


AnyTap: TypeAlias = Tap | CompiledTap


def disarm(taps: Iterable[AnyTap]) -> None:
    """Has later backward passes add nothing for potentials inside compiled functions, all at once."""
    armed = [tap for tap in taps if isinstance(tap, CompiledTap) and tap.is_armed]
    # Behind autograd's back, as in `Arriving`.
    zero_([tap.coefficient.data for tap in armed if tap.coefficient is not None])
    for tap in armed:
        tap.is_armed = False
