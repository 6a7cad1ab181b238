"""Describing what a graph showed when it was run once, so that every later run can be told of in the same way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

from torch import Tensor, fx

from lightning_psp.capture.functions import TorchFunction
from lightning_psp.capture.graph import Edge, edges_below
from lightning_psp.capture.nonlinearities import Activation
from lightning_psp.capture.origin import Origin, Potential, Source
from lightning_psp.capture.origins import Origins
from lightning_psp.capture.outputs import OutputFinder, Target, made_of, ways_to
from lightning_psp.capture.witness import Witness
from lightning_psp.compilation.region import Mention, Neurons, Region, ResultOrigin, Returned, UnseenCall, WayInside
from lightning_psp.compilation.rewriting import Place, Point, Rewriting, out_of_place
from lightning_psp.torch_private.tensors import is_view, version_of


class Seen(NamedTuple):
    """A potential when its nonlinearity was about to run."""

    z: Tensor
    source: Source | None  # which the modules that return it may change
    givers: list[fx.Node]  # that gave it
    user: fx.Node  # that reads it
    in_place: bool
    version: int
    in_call: bool
    has_grad: bool
    depends_on_parameter: bool
    inputs: list[int]  # of the graph on which it depends, other than parameters

    def preserve(self, z: Tensor) -> None:
        """Needs nothing: that the potential is overwritten shows in its version."""

    def release(self) -> None:
        """Has nothing to let go of."""


class Result(NamedTuple):
    """A tensor that is left of a run: a result of the graph, or an input that it has overwritten."""

    place: Place
    tensor: Tensor
    edge: Edge


class Description:
    """Fills a region with what a run of its graph showed, and has the graph tell of its potentials.

    Args:
        region: the region.
        rewriting: changes the graph.
        results: what is left of the run.
        givers: by the identity of a tensor, the nodes of the graph that gave it.
        placeholders: the inputs of the graph.
        edges_of_inputs: to those that are no parameters, by number.
        sources_of_inputs: the neurons of which those are that weights made, by number.
        dependence: gives of a tensor whether a trained parameter is among what it is made of, and which other inputs of
            the graph are.
        origins: what is known of tensors.
        edge_of: gives the edge that leads to a tensor.
        activations: the nonlinearities.
        outer: by what the running modules around the graph count places.
        has_loss: whether the graph computes a loss.
    """

    def __init__(
        self,
        region: Region,
        rewriting: Rewriting,
        *,
        results: Sequence[Result],
        givers: Mapping[int, list[fx.Node]],
        placeholders: list[fx.Node],
        edges_of_inputs: Mapping[int, Edge],
        sources_of_inputs: Mapping[int, Source],
        dependence: Callable[[Tensor], tuple[bool, list[int]]],
        origins: Origins,
        edge_of: Callable[[Tensor], Edge],
        activations: Mapping[TorchFunction, Activation],
        outer: Sequence[dict[str, int]],
        has_loss: bool,
    ) -> None:
        self._region = region
        self._rewriting = rewriting
        self._results = results
        self._givers = givers
        self._placeholders = placeholders
        self._dependence = dependence
        self._origins = origins
        self._edge_of = edge_of
        self._activations = activations
        self._outer = outer
        self._has_loss = has_loss
        self._inputs = {edge: Place(True, number) for number, edge in edges_of_inputs.items() if edge[0] is not None}
        self._sources_of_inputs = {id(source): number for number, source in sources_of_inputs.items()}
        self._below = [(result.place, edges_below(result.edge)) for result in results if result.edge[0] is not None]
        self._numbers: dict[int, int] = {}  # of potentials, by their identity
        self._sources: dict[int, int] = {}
        self._candidates: dict[int, Mention] = {}  # by the identity of the tensor
        self._evaluations: dict[int, int] = {}
        self._before_losses: list[Edge] = []  # to potentials, and to results that are no single number

    def describe(
        self,
        potentials: Sequence[Potential[Seen]],
        left_out: Sequence[Potential[Seen]],
        outputs: OutputFinder[Seen],
    ) -> None:
        """Fills the region.

        Args:
            potentials: those that were seen.
            left_out: those of them that are potentials only if they turn out to be the output.
            outputs: what was seen of outputs and losses.
        """
        self._numbers = {id(potential): number for number, potential in enumerate(potentials)}
        self._before_losses = [self._edge_of(cast(Seen, potential.kept).z) for potential in potentials]
        self._before_losses += [result.edge for result in self._results if result.tensor.ndim > 0]
        for potential in potentials:
            is_known = self._has_loss or potential.enters_loss
            self._add_point(potential, is_candidate=potential in left_out and not is_known)
        self._describe_outputs(outputs)
        results = {result.edge: result.place for result in self._results if result.edge[0] is not None}
        by_edge = dict(results)
        # A way to what a result holds in another shape or type leads to the result.
        for result in self._results:
            for other in self._origins.with_values_of(result.tensor):
                by_edge.setdefault(self._edge_of(other), result.place)
        for edge, place in results.items():
            self._add_ways(edge, place, {end: other for end, other in by_edge.items() if other != place})
        self._add_ways_beside(results, by_edge, potentials, outputs)
        self._describe_results()
        for point, potential in zip(self._region.points, potentials, strict=False):
            origin = cast(Origin, potential.origin)
            for top in (self._origins.top(origin), self._origins.stands_for(origin)):
                tensor = top.reference()
                if tensor is not None and top is not origin and (top.is_returned or id(tensor) in self._candidates):
                    point.returned = next(iter(self._mention(tensor).points), None)

    def _add_ways(self, edge: Edge, place: Place, ends: Mapping[Edge, Place], losses: Collection[Edge] = ()) -> None:
        """Adds the ways from a result to some ends, where losses are given to those beside these."""
        for way in ways_to({*ends, *losses}, edge):
            if way.edge not in losses:
                self._region.ways.append(WayInside(place, ends[way.edge], way.is_of_terms, bool(losses)))

    def _add_ways_beside(
        self,
        results: Mapping[Edge, Place],
        by_edge: Mapping[Edge, Place],
        potentials: Sequence[Potential[Seen]],
        outputs: OutputFinder[Seen],
    ) -> None:
        """Adds the ways from a result that is made of logits to what the loss is made of beside these."""
        stands_for = [self._origins.stands_for(cast(Origin, potential.origin)) for potential in potentials]
        points = list(zip(self._region.points, potentials, stands_for, strict=False))
        logits = {id(top) for point, _, top in points if point.is_output}
        # Another nonlinearity of the same logits, such as the sigmoid of a further loss, leads to nothing beside them.
        losses = {edge for _, potential, top in points if id(top) in logits for edge in potential.results}
        losses |= {edge for target in outputs.inputs_of_losses for edge in target.edges}
        for edge, place in results.items() if losses else ():
            if edge not in losses:
                ends = {**self._inputs, **by_edge}
                self._add_ways(edge, place, {end: ends[end] for end in ends if ends[end] != place}, losses)

    def _add_point(self, potential: Potential[Seen], is_candidate: bool) -> None:
        seen = potential.kept
        assert seen is not None
        assert potential.origin is not None
        point = Point(
            source=cast(int, self._source(seen.source)),
            in_call=seen.in_call,
            is_output=potential.is_output if self._has_loss else potential.enters_loss,
            unit_dim=potential.unit_dim,
            has_grad=seen.has_grad,
            is_candidate=is_candidate,
            results=self._results_of(potential.results),
            depends_on_parameter=seen.depends_on_parameter,
            inputs=seen.inputs,
            label=potential.label,
            weighings=potential.origin.weighings,
        )
        point.whole = self._input_of(self._origins.whole_of(seen.z))
        self._include(point, seen, potential.layer)
        self._region.points.append(point)

    def _describe_outputs(self, outputs: OutputFinder[Seen]) -> None:
        given = {result.edge for result in self._results}
        for call in outputs.calls:
            # What a loss in the graph does not reach is no output, unless other losses may reach it.
            targets = [
                self._returned(target)
                for target in call.targets
                if (not self._has_loss or not given.isdisjoint(target.edges)) and self._is_there(target)
            ]
            self._region.calls.append((targets, self._places_of(call.edges), call.is_trained))
        if not self._has_loss:
            by_edge = {result.edge: result for result in self._results if result.edge[0] is not None}
            weighings = {edge: self._origins.of(result.tensor).weighings for edge, result in by_edge.items()}
            self._region.inputs_of_losses = [
                replace(
                    self._returned(target),
                    edges=self._results_of(target.edges),
                    made_of=[by_edge[edge].place for edge in made_of(target, weighings)],
                )
                for target in outputs.inputs_of_losses
                if self._is_there(target)
            ]
            self._region.log_softmaxes = [
                self._returned(target)
                for target in outputs.log_softmaxes
                if not given.isdisjoint(target.edges) and self._is_there(target)
            ]

    def _describe_results(self) -> None:
        used = {way.end for way in self._region.ways}
        for place, tensor, _ in self._results:
            origin = self._origins.find(tensor)
            if origin is None:
                continue
            # Of what leaves the graph, only the graph knows of what it is a nonlinear function, value by value.
            root = self._origins.root(origin)
            entering = None if root.entering is None else self._mention(root.entering)
            whole = self._whole_of(origin)
            if whole is None and place in used and self._may_be_output(tensor):
                # A gradient that another result hands to it inside the graph is no gradient of this result.
                whole = self._mention(tensor)
            source = None if place.is_input and origin.source is None else self._source(origin.source)
            known = self._known(origin)
            if origin.potential is not None and not self._has_loss:
                # The output layer may be what its nonlinearity's input is a part or a multiple of.
                bounded = self._origins.top(cast(Origin, origin.potential.origin))
                if bounded is not origin.potential.origin and bounded.reference() is not None and bounded.is_made:
                    self._mention(cast(Tensor, bounded.reference()))
            mention = known if known.points else self._candidates.get(id(tensor), known)
            self._region.origins.append(
                ResultOrigin(
                    place,
                    source,
                    origin.unit_dim,
                    origin.is_made,
                    origin.is_weight,
                    origin.is_bent,
                    origin.made_of,
                    mention,
                    entering,
                    whole,
                    origin.weighings,
                )
            )

    def describe_unseen(self, witness: Witness) -> None:
        """Notes in the region what may be an activation that is no potential of the graph."""
        self._region.weights = list(witness.weights)
        # Of what no potential and no returned tensor depends on, a single number is made: a loss.
        below = set().union(*map(edges_below, self._before_losses))
        for suspect in [suspect for suspect in witness.unaccounted() if suspect.edge in below]:
            results = self._results_of([suspect.edge])
            line = list(self._origins.line(suspect.argument))
            start = line[-1].reference()
            kin = [] if start is None or (given := self._input_of(start)) is None else [given]
            for place, tensor, _ in self._results:
                own = list(self._origins.line(self._origins.of(tensor)))
                if any(origin is suspect.result for origin in own) or any(origin is own[0] for origin in line):
                    kin.append(place)
            self._region.unseen.append(UnseenCall(suspect.place, suspect.remedy, results, kin))

    # --- neurons and places ----------------------------------------------------------------------------------------

    def _source(self, source: Source | None) -> int | None:
        if source is None:
            return None
        if id(source) not in self._sources:
            is_counted = source.turn is not None and any(source.turn[0] is turns for turns in self._outer)
            place = source.turn[1] if is_counted and source.turn is not None else source.place
            evaluation = self._evaluations.setdefault(id(source.evaluation), len(self._evaluations))
            self._sources[id(source)] = len(self._region.sources)
            number = self._sources_of_inputs.get(id(source))
            self._region.sources.append(Neurons(source.path, place, is_counted, evaluation, source.is_around, number))
        return self._sources[id(source)]

    def _results_of(self, found: Sequence[Any]) -> list[Place]:
        return [place for place, below in self._below if below.intersection(found)]

    def _places_of(self, found: Sequence[Any]) -> list[Place]:
        exact = [result.place for result in self._results if result.edge in found]
        return exact or self._results_of(found)

    def _input_of(self, tensor: Tensor) -> Place | None:
        giver = self._givers.get(id(tensor), [None])[0]
        is_input = giver is not None and giver.op == "placeholder"
        return Place(True, self._placeholders.index(giver)) if is_input and giver is not None else None

    # --- mentions of tensors ---------------------------------------------------------------------------------------

    def _known(self, origin: Origin) -> Mention:
        """The mention of a tensor that is a potential or the result of its nonlinearity, of no points for others."""
        numbers = self._numbers
        if id(origin.potential) in numbers:
            return Mention([numbers[id(origin.potential)]], is_result=True)
        return Mention([numbers[id(other)] for other in origin.values.potentials if id(other) in numbers])

    def _mention(self, tensor: Tensor) -> Mention:
        """The mention of any tensor, for which the graph is made to tell of it."""
        origin = self._origins.of(tensor)
        found = self._known(origin)
        if found.points:
            return found
        if id(tensor) in self._candidates:
            return self._candidates[id(tensor)]
        givers = self._givers[id(tensor)]
        if givers[0].op == "placeholder":
            return Mention([], place=Place(True, self._placeholders.index(givers[0])))
        if origin.source is None:
            origin.source = Source(None)
        depends_on_parameter, inputs = self._dependence(tensor)
        point = Point(
            source=cast(int, self._source(origin.source)),
            in_call=True,
            is_output=False,
            unit_dim=origin.unit_dim if origin.unit_dim < tensor.ndim else -1,
            has_grad=True,
            is_candidate=True,
            results=self._results_of([self._edge_of(tensor)]),
            depends_on_parameter=depends_on_parameter,
            inputs=inputs,
            label="output",
            weighings=origin.weighings,
        )
        self._rewriting.include(point, tensor, givers, None, tensor.requires_grad, False)
        self._region.points.append(point)
        self._candidates[id(tensor)] = Mention([len(self._region.points) - 1])
        return self._candidates[id(tensor)]

    def _whole_of(self, origin: Origin) -> Mention | None:
        top = self._origins.stands_for(origin)
        tensor = top.reference()
        if top is origin or self._known(origin).points:
            return None
        if tensor is None:
            overwritten = self._known(top)
            return overwritten if overwritten.points and not overwritten.is_result else None
        if tensor.ndim == 0:
            return None
        if id(tensor) not in self._givers:
            return None
        return self._mention(tensor)

    def _may_be_output(self, tensor: Tensor) -> bool:
        origin = self._origins.of(tensor)
        is_made_here = id(tensor) in self._givers and self._givers[id(tensor)][0].op != "placeholder"
        return is_made_here and origin.is_made and tensor.ndim > 0 and not self._known(origin).points

    def _returned(self, target: Target[Seen]) -> Returned:
        if target.tensor is None:
            found = Mention([self._numbers[id(target.potentials[0])]])
        else:
            found = self._mention(target.tensor)
        return Returned(self._places_of(target.edges), found, target.path, target.may_be_term)

    def _is_there(self, target: Target[Seen]) -> bool:
        return target.tensor is not None or any(id(potential) in self._numbers for potential in target.potentials)

    # --- changes to the graph --------------------------------------------------------------------------------------

    def _include(self, point: Point, seen: Seen, layer: str) -> None:
        if seen.givers[-1].op == "placeholder":
            point.input = Place(True, self._placeholders.index(seen.givers[-1]))
        has_gradient = seen.has_grad and seen.z.requires_grad
        is_overwritten = seen.in_place or version_of(seen.z) != seen.version
        # A loss may be told of logits whose softmax was taken before.
        is_read = any(giver in seen.user.all_input_nodes for giver in seen.givers)
        user = seen.user if is_read else None
        if is_overwritten and user is None and (point.input is not None or is_view(seen.z)):
            raise NotImplementedError(
                f"A part of layer {layer!r} is overwritten inside a compiled function that was given the whole. Write"
                " `torch.where` or `masked_fill`."
            )
        self._rewriting.include(point, seen.z, seen.givers, user, has_gradient, is_overwritten)
        if not seen.in_place or user is None or point.coefficient is None:
            return
        function = function_of_node(seen.user)
        activation = out_of_place(function, self._activations)
        if activation is None:
            raise NotImplementedError(
                f"Layer {layer!r}, of a module class in the argument `activations`, overwrites its potentials"
                " inside a compiled function. Let it work out of place."
            )
        self._rewriting.work_out_of_place(seen.user, function, activation)


def function_of_node(node: fx.Node) -> Any:
    """What a node of a graph calls."""
    return getattr(Tensor, str(node.target), None) if node.op == "call_method" else node.target
