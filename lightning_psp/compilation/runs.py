"""One run of a compiled graph: what it made becomes known as if its functions had been called one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_psp.capture.graph import Edge
from lightning_psp.capture.origin import GATED, Measured, Potential, Softmax, Source, is_within
from lightning_psp.capture.outputs import Call, Target, Way
from lightning_psp.capture.records import Records
from lightning_psp.compilation.region import Mention, Region, Returned
from lightning_psp.compilation.rewriting import Place, Point


class Run:
    """One run of a compiled graph, of which a capture is to be told.

    Args:
        region: the graph.
        inputs: what it was given.
        sources: for the inputs that potentials are made of, to what they were before the graph overwrote any.
        outputs: what it gave, with what tells of its potentials.
        coefficients: those of its penalty.
        gives_values: whether it gave the potentials themselves.
        records: what is to be told of it.
    """

    def __init__(
        self,
        region: Region,
        inputs: Sequence[Any],
        sources: dict[int, Edge],
        outputs: Sequence[Any],
        coefficients: list[Tensor],
        *,
        gives_values: bool,
        records: Records[Any],
    ) -> None:
        self._region = region
        self._inputs = inputs
        self._sources = sources
        self._outputs = outputs
        self._coefficients = coefficients
        self._gives_values = gives_values
        self._frames = records.frames
        self._origins = records.origins
        self._graph = records.graph
        self._ledger = records.ledger
        self._seen = records.outputs
        self._witness = records.witness
        self._settlement = records.settlement
        self._prefix = self._frames.innermost_path()
        self._neurons: dict[int, Source] = {}
        # Before an input that the graph has overwritten is known as something else.
        places = {place for point in region.points for place in (point.input, point.whole) if place is not None}
        self._given = {place: self._origins.of(inputs[place.number]) for place in places}
        self._known = self._targets_outside()
        of_inputs = {neurons.input for neurons in region.sources if neurons.input is not None}
        self._sources_of_inputs = {number: self._origins.of(inputs[number]).source for number in of_inputs}
        self._evaluations: dict[int, object] = {}
        known = [self._origins.find(value) for value in inputs if isinstance(value, Tensor)]
        self._weighings = max((origin.weighings for origin in known if origin is not None), default=0)
        self._potentials: list[Potential[Any] | None] = []
        self._stand_ins: list[Tensor | None] = []

    def tell(self) -> None:
        """Tells of what the graph has made: of its potentials, and of what may be outputs and losses."""
        region = self._region
        has_shadow = not self._ledger.skips_without_grad
        node = self._graph.node("compiled", list(self._inputs)) if has_shadow else None
        for found in region.origins:
            origin = self._origins.renew(self._tensor(found.place))
            if node is not None and found.is_made:
                origin.node = node.copy()  # a returned tensor does not depend on another one
        for point in region.points:
            self._tell_point(point)
        for point, stand_in in zip(region.points, self._stand_ins, strict=True):
            if point.returned is not None and stand_in is not None:
                whole = self._stand_ins[point.returned]
                assert whole is not None
                self._origins.of(stand_in).whole = self._origins.of(whole)
        for found in region.origins:
            origin = self._origins.of(self._tensor(found.place))
            origin.source = None if found.source is None else self._source(found.source)
            origin.unit_dim, origin.made_of = found.unit_dim, found.made_of
            origin.is_made, origin.is_weight, origin.is_bent = found.is_made, found.is_weight, found.is_bent
            origin.weighings = self._weighings + found.weighings
            self._mark(self._tensor(found.place), found.mention)
            if found.mention.is_result:
                number = region.points[found.mention.points[0]].returned
                bounded = None if number is None else self._stand_ins[number]
                if bounded is not None:
                    self._origins.hold_base(self._tensor(found.place), bounded)
            if found.entering is not None:
                origin.softmax = Softmax(self._tensor_of(found.entering))
            whole = None if found.whole is None else self._tensor_of(found.whole)
            # Where the graph gives potentials themselves, one may be a result, too.
            if whole is not None and whole is not self._tensor(found.place):
                origin.whole = self._origins.of(whole)
                self._origins.hold_base(self._tensor(found.place), whole)
        for returned, places, is_trained in region.calls:
            targets = [self._target(found) for found in returned]
            self._seen.calls.append(Call(targets, self._edges(places), is_trained))
        for way in region.ways:
            start, end = self._edges([way.start, way.end])
            self._seen.inside.setdefault(start, []).append(Way(end, way.is_of_terms, way.is_beside))
        self._seen.inputs_of_losses.extend(self._target(found) for found in region.inputs_of_losses)
        self._seen.log_softmaxes.extend(self._target(found) for found in region.log_softmaxes)
        if not self._ledger.in_call:
            for found in region.origins:
                tensor = self._tensor(found.place)
                if tensor.ndim == 0 and self._ledger.counts():
                    self._seen.note_scalar(tensor, self._graph.edge(tensor), self._frames.in_metric)
        self._tell_of_unseen()

    def _tell_of_unseen(self) -> None:
        """Tells of what may be an activation that is no potential."""
        self._witness.note_weights(map(self._rebased, self._region.weights))
        for call in self._region.unseen:
            kin = [origin for place in call.kin if (origin := self._origins.find(self._tensor(place))) is not None]
            self._witness.note_unseen(self._rebased(call.place), call.remedy, self._edges(call.results), kin)

    def _targets_outside(self) -> dict[Place, Target[Any]]:
        """What those inputs stand for outside the graph that may be the output, or of which that may be a part."""
        region = self._region
        places = {point.whole for point in region.points if point.is_output and point.whole is not None}
        returned = [*(found for call in region.calls for found in call[0]), *region.inputs_of_losses]
        places.update(found.mention.place for found in returned if found.mention.place is not None)
        targets = {place: self._settlement.target(self._tensor(place), None) for place in places}
        return {place: target for place, target in targets.items() if target is not None}

    def _target(self, returned: Returned) -> Target[Any]:
        mention = returned.mention
        edges = self._edges(returned.edges)
        made_of = None if returned.made_of is None else self._edges(returned.made_of)
        path = self._rebased(returned.path)
        if mention.points and self._potentials[mention.points[0]] is not None:
            potentials = [found for number in mention.points if (found := self._potentials[number]) is not None]
            return Target(edges, None, None, potentials, path, returned.may_be_term, made_of)
        known = None if mention.place is None else self._known.get(mention.place)
        if known is not None and known.tensor is None:
            return replace(known, edges=edges, path=path, may_be_term=returned.may_be_term, made_of=made_of)
        tensor = self._tensor_of(mention) if known is None or known.tensor is None else known.tensor
        origin = self._origins.of(tensor)
        origin.giver = path
        return Target(edges, tensor, origin, [], path, returned.may_be_term, made_of)

    def _source(self, number: int) -> Source:
        found = self._neurons.get(number)
        if found is None:
            neurons = self._region.sources[number]
            given = None if neurons.input is None else self._sources_of_inputs[neurons.input]
            if given is not None and given.name is not None:
                return given
            evaluation = self._evaluations.setdefault(neurons.evaluation, object())
            path = None if neurons.path is None else self._rebased(neurons.path)
            found = self._neurons[number] = Source(path, evaluation)
            found.is_around = neurons.is_around
            if neurons.place is not None:
                place = self._rebased(neurons.place)
                if neurons.is_counted:
                    self._frames.count_place(found, place)
                else:
                    found.place = place
        return found

    def _tell_point(self, point: Point) -> None:
        z = self._tensor(point.outputs[0]) if self._gives_values else torch.empty(1)
        if point.input is not None and z is self._tensor(point.input):  # which is known as something else
            z = z.view_as(z)
        origin = self._origins.of(z)
        origin.measured = self._measured(point)
        origin.unit_dim, origin.is_made = point.unit_dim, True
        origin.weighings = self._weighings + point.weighings
        origin.source = self._source(point.source)
        self._stand_ins.append(z)
        if point.is_candidate or (self._ledger.skips_without_grad and not point.has_grad):
            self._potentials.append(None)
            return
        if point.is_output and self._is_told_whole(point, origin.measured.results):
            return
        if point.whole is not None and point.whole != point.input:
            origin.whole = self._given[point.whole]
        if point.input is not None:
            given = self._given[point.input]
            origin.unit_dim = given.unit_dim
            if given.source is not None and given.source.name is not None:
                origin.source = given.source
            origin.values = given.values
            if given.made_of == GATED and not point.is_output:  # a state, as outside of compiled code
                self._potentials.append(None)
                return
            if origin.values.potentials:  # another nonlinearity has read it
                known: Potential[Any] = origin.values.potentials[0]
                known.is_output = known.enters_loss = known.is_output or point.is_output
                known.results.extend(origin.measured.results)
                self._potentials.append(known)
                return
        potential = self._ledger.add(z, point.label, False, point.is_output, in_call=point.in_call)
        potential.enters_loss = point.is_output
        self._potentials.append(potential)

    def _is_told_whole(self, point: Point, results: list[Edge]) -> bool:
        """Tells of logits that are a part, a multiple or a function of a tensor outside, which stands for them."""
        known = None if point.whole is None else self._known.get(point.whole)
        if known is None or point.whole is None or known.tensor is self._tensor(point.whole):
            return False
        potentials = [self._settlement.whole_potential(potential) for potential in known.potentials]
        if known.tensor is not None and known.origin is not None:
            potentials = known.origin.values.potentials
            if not potentials:
                if not self._ledger.is_potential(known.tensor):
                    return False
                self._ledger.add(known.tensor, point.label, in_place=False, is_output=True)
        for potential in potentials:
            potential.is_output = potential.enters_loss = True
            potential.results.extend(results)
        self._potentials.append(potentials[0])
        return True

    def _measured(self, point: Point) -> Measured:
        tensors = [self._tensor(place) for place in point.outputs]
        results = self._edges(point.results)
        sizes = [self._tensor(size) if isinstance(size, Place) else size for size in point.sizes]
        coefficient = None if point.coefficient is None else self._coefficients[point.coefficient]
        sources = None if point.depends_on_parameter else [self._sources[index] for index in point.inputs]
        return Measured(tensors, coefficient, sizes, results, sources)

    def _tensor(self, place: Place) -> Any:
        return (self._inputs if place.is_input else self._outputs)[place.number]

    def _tensor_of(self, mention: Mention) -> Tensor:
        """The tensor itself where it is an input, else one that stands for it."""
        if mention.place is not None:
            tensor: Tensor = self._tensor(mention.place)
            return tensor
        if not mention.is_result and self._potentials[mention.points[0]] is None:
            candidate = self._stand_ins[mention.points[0]]
            assert candidate is not None
            return candidate
        stand_in = torch.empty(1)
        self._origins.renew(stand_in)
        self._mark(stand_in, mention)
        return stand_in

    def _edges(self, places: Sequence[Place]) -> list[Edge]:
        return [self._graph.edge(self._tensor(place)) for place in places]

    def _mark(self, tensor: Tensor, mention: Mention) -> None:
        origin = self._origins.of(tensor)
        potentials = [other for other in (self._potentials[number] for number in mention.points) if other is not None]
        if mention.is_result:
            origin.potential = potentials[0] if potentials else None
        elif potentials:
            origin.values.potentials = potentials
        elif mention.points and (candidate := self._stand_ins[mention.points[0]]) is not None:
            # Whoever makes one of them a potential makes it one of both.
            origin.values = self._origins.of(candidate).values

    def _rebased(self, path: str) -> str:
        """The same path in the module that runs the graph, which may be another one of the same class."""
        prefix = self._region.prefix
        if prefix in ("", self._prefix) or not (path == prefix or is_within(path, prefix)):
            return path
        return f"{self._prefix}{path[len(prefix) :]}".lstrip(".")
