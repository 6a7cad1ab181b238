"""Activations that are written out: what is computed between two tensors is taken for one nonlinearity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic

from torch import Tensor

from lightning_psp.capture.frames import Frame, Frames, take_back
from lightning_psp.capture.ledger import Ledger
from lightning_psp.capture.origin import LINEAR, Kept, Origin, Potential
from lightning_psp.capture.origins import Origins, shape_of
from lightning_psp.capture.pointwise import Join
from lightning_psp.capture.shadow import Graph


class WrittenActivations(Generic[Kept]):
    """Replaces the potentials inside an activation by the one that enters it.

    Args:
        ledger: the potentials.
        frames: the running modules.
        origins: what is known of tensors.
        graph: the graph in which they are.
        keep_overwritten: called with what is no potential unless it turns out to be the output, and was overwritten.
    """

    def __init__(
        self,
        ledger: Ledger[Kept],
        frames: Frames,
        origins: Origins,
        graph: Graph,
        keep_overwritten: Callable[[Potential[Kept]], None],
    ) -> None:
        self._ledger = ledger
        self._frames = frames
        self._origins = origins
        self._graph = graph
        self._keep_overwritten = keep_overwritten

    def enter(self, frame: Frame, inputs: tuple[Any, ...]) -> None:
        """Notes what a module is given that may be an activation as a whole."""
        given = [value for value in inputs if isinstance(value, Tensor)]
        if len(given) == 1 and given[0].ndim > 0 and self._ledger.is_potential(given[0]):
            frame.given, frame.first = self._origins.of(given[0]), len(self._ledger.potentials)

    def overwrite(self, origin: Origin, label: str, join: Join | None) -> bool:
        """Takes a tensor that is about to be overwritten for a potential, where an activation may be written out so.

        Returns:
            Whether it was.
        """
        frame = self._frames.running[-1] if self._frames.running else None
        is_candidates = frame is not None and frame.given is origin
        is_joined = join is not None and join.origin.values is origin.values
        tensor = origin.reference()
        if not (is_candidates or is_joined) or not self._ledger.is_potential(tensor):
            return False
        is_new = not origin.values.potentials
        potential = self._ledger.meet(tensor, label, in_place=True)
        if frame is not None and is_new and not is_joined:
            frame.overwritten = potential
        return True

    def close(self, join: Join, result: Tensor, label: str) -> None:
        """Takes what was computed between two tensors for one activation, whose input is the first."""
        if not (result.dtype.is_floating_point or result.dtype.is_complex):
            return  # a mask of several conditions
        inner = [potential for origin in join.between if origin._values for potential in origin.values.potentials]
        z = join.origin.reference()
        known = join.origin.values.potentials
        if not known and (z is None or not self._ledger.is_potential(z) or self._ledger.is_of_no_network(z)):
            return
        self._replace(inner, join.origin, z, result, inner[0].label if inner else label, None)

    def leave(self, frame: Frame, output: Any) -> bool:
        """Takes a module for an activation if what it returned follows value by value from what it was given."""
        given = frame.given
        assert given is not None
        z = given.reference()
        if not self._is_activation(given, output) or (z is None and not given.values.potentials):
            if frame.overwritten is not None:
                self._take_for_none(frame.overwritten, output)
            read = next((p for p in self._ledger.potentials[frame.first :] if p.origin is given), None)
            if read is not None and given.source is not None and given.source.path is None:
                self._frames.rename_inside(frame, given.source, read.label)
                read.layer = given.source.name or read.layer
            return False
        inner = [p for p in self._ledger.potentials[frame.first :] if p.origin is not None and p.origin is not given]
        potential = self._replace(inner, given, z, output, type(frame.module).__name__.lower(), frame)
        self._origins.record_result(output, given, potential)
        return True

    def _take_for_none(self, potential: Potential[Kept], output: Any) -> None:
        """Lets go of what a module overwrote that is no activation, unless what it returned may be the output."""
        _forget_place(potential)
        origin = self._origins.find(output)
        while origin is not None and origin is not potential.origin:
            origin = origin.whole
        is_returned = potential.origin is not None and potential.origin.is_returned  # and overwritten by a loss
        if origin is not None or is_returned:
            self._keep_overwritten(potential)
        else:
            self._ledger.drop(potential)

    def _is_activation(self, given: Origin, output: Any) -> bool:
        """Whether a result follows from a tensor value by value, not linearly, and through no bias of its neurons."""
        if not isinstance(output, Tensor) or (shape_of(given) or output.shape) != output.shape:
            return False
        origin, way, is_biased = self._origins.find(output), LINEAR, False
        while origin is not None and origin is not given:
            # What bends on the way back lies behind whatever was added before.
            is_biased = (is_biased and origin.step == LINEAR) or origin.is_biased
            way = max(way, origin.step)
            origin = origin.parent
        return origin is given and way != LINEAR and not is_biased

    def _replace(
        self,
        inner: Sequence[Potential[Kept]],
        origin: Origin,
        z: Tensor | None,
        result: Tensor,
        label: str,
        activation: Frame | None,
    ) -> Potential[Kept]:
        known: list[Potential[Kept]] = origin.values.potentials
        if known:
            potential = known[0]
        else:
            for other in inner:
                _forget_place(other)
            assert z is not None
            potential = self._ledger.add(z, label, False, is_output=False, activation=activation)
        potential.results.append(self._graph.edge(result))
        for other in inner:
            if other is not potential:
                potential.results.extend(other.results)
                self._ledger.drop(other)
        return potential


def _forget_place(potential: Potential[Any]) -> None:
    source = None if potential.origin is None else potential.origin.source
    if source is not None and source.path is None:
        take_back(source)
