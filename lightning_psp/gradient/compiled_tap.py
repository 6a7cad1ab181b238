"""What is kept of a potential inside a compiled function between forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_psp.capture.graph import Edge, ReachedGraph
from lightning_psp.capture.origin import Measured, Potential
from lightning_psp.gradient.arriving import Arriving
from lightning_psp.gradient.tap import Tap


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
        self._coefficient = measured.coefficient
        self._sources = measured.sources
        self._factor = 0.0

    @property
    def layer(self) -> str:
        """Name of the layer."""
        return self.potential.layer

    def is_live(self, graph: ReachedGraph) -> bool:
        """Whether gradient of the loss arrives at the potential and goes on to a trained parameter."""
        is_trained = self._sources is None or any(graph.holds(edge) for edge in self._sources)
        return self._coefficient is not None and is_trained and any(map(graph.holds, self.potential.results))

    def arm(self, alpha: float, direction: Tensor | None, arriving: Arriving) -> None:
        """Makes the next backward pass add `alpha` times the gradient that arrives at the loss times the potential."""
        self._factor = alpha
        arriving.when_known(self._fill)

    def _fill(self, arrived: float | Tensor) -> None:
        assert self._coefficient is not None
        # Saved for the backward pass, the coefficient may be changed only behind autograd's back.
        with torch.no_grad():
            if isinstance(arrived, Tensor):
                self._coefficient.data.copy_(arrived * self._factor)
            else:
                self._coefficient.data.fill_(arrived * self._factor)

    def arm_to_measure(self, alpha: float, direction: Tensor | None) -> Callable[[], None]:
        """Makes every backward pass add `alpha` times the potential to its gradient, until what it gives is called."""
        coefficient = self._coefficient
        assert coefficient is not None
        # Behind autograd's back, as in `_fill`.
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
        """Has later backward passes add nothing."""
        if self._coefficient is not None:
            self._coefficient.data.zero_()
            self._coefficient = None
        self.potential.results.clear()


AnyTap: TypeAlias = Tap | CompiledTap
