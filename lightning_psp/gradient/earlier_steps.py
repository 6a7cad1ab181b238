"""Potentials whose training step has ended before a backward pass came by, to which nothing is added any more."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

from lightning_psp.capture.graph import ReachedGraph
from lightning_psp.gradient.compiled_tap import AnyTap
from lightning_psp.torch_private.autograd import notes_at

_KEY = "lightning_psp"  # in what autograd keeps for others with a node


class _Mark:
    """Lies with a node of the graph, and lives as long as it does."""

    def __init__(self, layer: str) -> None:
        self.layer = layer


class EarlierSteps:
    """Knows the potentials of steps that have ended, without keeping their graphs.

    A loss may be summed up over several steps of which all but the last return None. Whoever sums it up keeps the
    graphs of these steps, and with them the marks that lie there.
    """

    def __init__(self) -> None:
        self._marks: list[weakref.ref[_Mark]] = []

    def note(self, taps: Iterable[AnyTap]) -> None:
        """Marks potentials of a step that ends; one that was penalised has let go of its place in the graph."""
        for tap in taps:
            for node, output_nr in tap.edges():
                if node is not None:
                    mark = notes_at(node)[_KEY, output_nr] = _Mark(tap.layer)
                    self._marks.append(weakref.ref(mark))
        if self._marks:
            self._marks = [mark for mark in self._marks if mark() is not None]

    def layers_in(self, graph: ReachedGraph) -> tuple[str, ...]:
        """The layers of marked potentials between trained parameters and a loss."""
        marks = [mark for reference in self._marks if (mark := reference()) is not None]
        if not marks:
            return ()  # as nearly always
        reached = {edge[0].metadata.get((_KEY, edge[1])) for edge in graph.edges if graph.holds(edge)}
        return tuple(dict.fromkeys(mark.layer for mark in marks if mark in reached))
