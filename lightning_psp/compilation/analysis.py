"""Finding the potentials of a graph that `torch.compile` traced.

The graph is run once on tensors without values under a capture of its own, so that the rules inside a compiled function
are those outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, fx, nn

from lightning_psp.capture.functions import overwriting
from lightning_psp.capture.graph import Edge, edges_below, reach_from
from lightning_psp.capture.mode import Capture
from lightning_psp.capture.nonlinearities import Activation
from lightning_psp.capture.origin import Origin, Potential, Source
from lightning_psp.capture.outputs import Target, ways_to
from lightning_psp.compilation.region import Mention, Neurons, Region, ResultOrigin, Returned
from lightning_psp.compilation.rewriting import Place, Point, Rewriting
from lightning_psp.functional.penalty import Reduction
from lightning_psp.torch_private.compiler import without_values
from lightning_psp.torch_private.tensors import version_of

_MODULE_STACK = "nn_module_stack"
# A call of a module: the number of the module with that of the call, and where the module was found. Both differ
# between two calls only if the module was found in the same place.
_Entry: TypeAlias = tuple[str, str]


class _Seen(NamedTuple):
    """A potential when its nonlinearity was about to run."""

    z: Tensor
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


def find_potentials(
    graph: fx.GraphModule,
    examples: Sequence[Any],
    *,
    make_capture: Callable[[Callable[[Tensor, Potential[_Seen], bool], _Seen]], Capture[_Seen]],
    network: nn.Module,
    name_of_parameter: Callable[[Any], str | None],
    prefix: str,
    reduction: Reduction | None,
) -> Region:
    """Finds the potentials of a graph and has the graph tell of them.

    Args:
        graph: the graph, which is changed: it takes as many further inputs as the region has coefficients.
        examples: its inputs.
        make_capture: given what is called with each potential, makes a capture with the rules of the one under which
            the graph was traced, that starts at the same place in the network.
        network: the network.
        name_of_parameter: gives the name of a parameter of it.
        prefix: path of the module in whose forward the graph is made.
        reduction: reduction of the penalty; None if the values of potentials are asked for.

    Raises:
        NotImplementedError: if a potential lies where it cannot be told of.
    """
    analysis = _Analysis(graph, make_capture, network, reduction)
    return analysis.find(examples, name_of_parameter, prefix)


class _Analysis(fx.Interpreter):
    def __init__(
        self,
        graph: fx.GraphModule,
        make_capture: Callable[[Callable[[Tensor, Potential[_Seen], bool], _Seen]], Capture[_Seen]],
        network: nn.Module,
        reduction: Reduction | None,
    ) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self._static = make_capture(self._see)
        self._modules = {str(id(module)): module for module in network.modules()}
        self._nodes = list(graph.graph.nodes)
        self._placeholders = [node for node in self._nodes if node.op == "placeholder"]
        self._stack: list[tuple[_Entry, nn.Module]] = []
        self._node = self._nodes[0]  # that is being run
        self._givers: dict[int, list[fx.Node]] = {}  # by the identity of the tensor
        self._edges_of_inputs: dict[int, Edge] = {}
        self._graph = graph
        self._reduction = reduction

    def find(self, examples: Sequence[Any], name_of_parameter: Callable[[Any], str | None], prefix: str) -> Region:
        """Runs the graph on tensors like the examples, and changes it; see :func:`find_potentials`."""
        is_dynamic = any(not isinstance(example, Tensor) for example in examples)
        self._rewriting = Rewriting(self._graph, self._reduction, is_dynamic)
        self.region = Region(prefix, self._rewriting.number_of_results, self._rewriting.coefficients)
        has_grad = torch.is_grad_enabled()
        # Tensors made in inference mode do not say whether they are overwritten.
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(has_grad),
            without_values(),
            self._static,
        ):
            self._find(examples, name_of_parameter)
        self._rewriting.finish()
        return self.region

    def _find(self, examples: Sequence[Any], name_of_parameter: Callable[[Any], str | None]) -> None:
        with self._static.suspended():
            inputs = [_without_values(example) for example in examples]
        before = [version_of(tensor) if isinstance(tensor, Tensor) else 0 for tensor in inputs]
        for index, (tensor, example) in enumerate(zip(inputs, examples, strict=True)):
            if isinstance(tensor, nn.Parameter):
                origin = self._static.origins.of(tensor)
                origin.weight = name_of_parameter(example)
                origin.is_weight = origin.weight is not None
            elif isinstance(tensor, Tensor):
                self._edges_of_inputs[index] = (tensor.grad_fn, tensor.output_nr)
                self._static.origins.of(tensor).is_made = tensor.requires_grad
        outputs = self.run(*inputs)
        self._enter_modules([])
        losses = []
        if not self._static.ledger.in_call:
            numbers = [tensor for tensor in outputs if isinstance(tensor, Tensor) and tensor.ndim == 0]
            losses = [edge for tensor in numbers if (edge := self._static.graph.edge(tensor))[0] is not None]
            if losses:
                self._static.settlement.settle(losses)
        self._has_loss = bool(losses)
        overwritten = [
            (Place(True, index), tensor)
            for index, tensor in enumerate(inputs)
            if isinstance(tensor, Tensor) and version_of(tensor) != before[index]
        ]
        given = [(Place(False, index), tensor) for index, tensor in enumerate(outputs) if isinstance(tensor, Tensor)]
        self._describe(overwritten + given)

    # --- running the graph -----------------------------------------------------------------------------------------

    def run_node(self, n: fx.Node) -> Any:
        """Runs a node inside the modules that it was traced in."""
        self._node = n
        if n.op.startswith("call"):
            self._enter_modules(_modules_around(n))
        result = super().run_node(n)
        # Of several tensors, further nodes give each.
        if isinstance(result, Tensor) and n.op != "output":
            self._givers.setdefault(id(result), []).append(n)
        return result

    def _enter_modules(self, entries: list[_Entry]) -> None:
        """Leaves and enters modules until these are entered."""
        common = 0
        for (entry, _), wanted in zip(self._stack, entries, strict=False):
            if entry != wanted:
                break
            common += 1
        while len(self._stack) > common:
            entry, module = self._stack.pop()
            given = self._given_by(entry)
            self._static.leave_module(module, (), given[0] if len(given) == 1 else tuple(given))
        for entry in entries[common:]:
            module = self._modules.get(entry[0].partition("@")[0]) or nn.Module()
            self._stack.append((entry, module))
            self._static.enter_module(module, tuple(self._given_to(entry)))

    def _given_by(self, entry: _Entry) -> list[Tensor]:
        """The tensors made inside a module that are used outside, or else the last one."""
        made = [
            (node, value) for node, value in self.env.items() if isinstance(value, Tensor) and _is_inside(node, entry)
        ]
        given = [value for node, value in made if any(not _is_inside(user, entry) for user in node.users)]
        return given or [value for _, value in made[-1:]]

    def _given_to(self, entry: _Entry) -> Iterator[Tensor]:
        """The tensors made outside a module, other than parameters, that are used inside."""
        used = {before: None for node in self._nodes if _is_inside(node, entry) for before in node.all_input_nodes}
        for node in used:
            value = self.env.get(node)
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                yield value

    def _see(self, z: Tensor, potential: Potential[_Seen], in_place: bool) -> _Seen:
        givers = self._givers.get(id(z))
        if givers is None and _function(self._node) in self._static.nonlinearities.hidden:
            givers = self._node.all_input_nodes[:1]  # what overwrites a view works on a copy of it
        if not givers:
            raise NotImplementedError(
                f"The potentials of layer {potential.layer!r} lie inside an operation of a compiled function that"
                " cannot be looked into, such as an activation checkpoint or a recurrent cell. Leave the layer out of"
                " the compiled code: put `torch.compiler.disable` around its module or the checkpointed function."
            )
        has_grad = torch.is_grad_enabled()
        in_call = self._static.ledger.in_call
        return _Seen(z, list(givers), self._node, in_place, version_of(z), in_call, has_grad, *self._origins(z))

    def _origins(self, tensor: Tensor) -> tuple[bool, list[int]]:
        """Whether a trained parameter is among what a tensor is made of, and which other inputs of the graph are."""
        reached = reach_from((tensor.grad_fn, tensor.output_nr))
        above = reached.nodes_of_parameters
        inputs = [index for index, edge in self._edges_of_inputs.items() if edge in reached.edges]
        return above is None or tensor.grad_fn in above, inputs

    # --- what was found --------------------------------------------------------------------------------------------

    def _describe(self, results: list[tuple[Place, Tensor]]) -> None:
        region, static = self.region, self._static
        edges = [(place, static.graph.edge(tensor)) for place, tensor in results]
        reached = [(place, edges_below(edge)) for place, edge in edges if edge[0] is not None]
        numbers = {id(potential): number for number, potential in enumerate(static.ledger.potentials)}
        known_sources: dict[int, int] = {}
        candidates: dict[int, Mention] = {}  # by the identity of the tensor
        evaluations: dict[int, int] = {}
        outer = [frame.turns for frame in (static.frames.outside, *static.frames.resumed)]

        def results_of(found: Sequence[Any]) -> list[Place]:
            return [place for place, below in reached if below.intersection(found)]

        def places_of(found: Sequence[Any]) -> list[Place]:
            exact = [place for place, edge in edges if edge in found]
            return exact or results_of(found)

        def source_of(source: Source | None) -> int | None:
            if source is None:
                return None
            if id(source) not in known_sources:
                is_counted = source.turn is not None and any(source.turn[0] is turns for turns in outer)
                place = source.turn[1] if is_counted and source.turn is not None else source.place
                evaluation = evaluations.setdefault(id(source.evaluation), len(evaluations))
                known_sources[id(source)] = len(region.sources)
                region.sources.append(Neurons(source.path, place, is_counted, evaluation))
            return known_sources[id(source)]

        def known(origin: Origin) -> Mention:
            if id(origin.potential) in numbers:
                return Mention([numbers[id(origin.potential)]], is_result=True)
            return Mention([numbers[id(other)] for other in origin.values.potentials if id(other) in numbers])

        def mention(tensor: Tensor) -> Mention:
            origin = static.origins.of(tensor)
            found = known(origin)
            if found.points:
                return found
            if id(tensor) in candidates:
                return candidates[id(tensor)]
            givers = self._givers[id(tensor)]
            if givers[0].op == "placeholder":
                return Mention([], place=Place(True, self._placeholders.index(givers[0])))
            if origin.source is None:
                origin.source = Source(None)
            depends_on_parameter, inputs = self._origins(tensor)
            point = Point(
                source=cast(int, source_of(origin.source)),
                in_call=True,
                is_output=False,
                unit_dim=origin.unit_dim if origin.unit_dim < tensor.ndim else -1,
                has_grad=True,
                is_candidate=True,
                results=results_of([static.graph.edge(tensor)]),
                depends_on_parameter=depends_on_parameter,
                inputs=inputs,
                label="output",
                weighings=origin.weighings,
            )
            self._rewriting.include(point, tensor, givers, None, tensor.requires_grad, False)
            region.points.append(point)
            candidates[id(tensor)] = Mention([len(region.points) - 1])
            return candidates[id(tensor)]

        def whole_of(origin: Origin) -> Mention | None:
            top = static.origins.stands_for(origin)
            tensor = top.reference()
            if top is origin or tensor is None or tensor.ndim == 0 or known(origin).points:
                return None
            if id(tensor) not in self._givers:
                return None
            return mention(tensor)

        def may_be_output(tensor: Tensor) -> bool:
            origin = static.origins.of(tensor)
            is_made_here = id(tensor) in self._givers and self._givers[id(tensor)][0].op != "placeholder"
            return is_made_here and origin.is_made and tensor.ndim > 0 and not known(origin).points

        def returned(target: Target[_Seen]) -> Returned:
            known = target.potentials[0] if target.tensor is None else None
            found = mention(target.tensor) if target.tensor is not None else Mention([numbers[id(known)]])
            return Returned(places_of(target.edges), found, target.path, target.may_be_term)

        for potential in static.ledger.potentials:
            seen = potential.kept
            assert seen is not None
            assert potential.origin is not None
            point = Point(
                source=cast(int, source_of(potential.origin.source)),
                in_call=seen.in_call,
                is_output=potential.is_output if self._has_loss else potential.enters_loss,
                unit_dim=potential.unit_dim,
                has_grad=seen.has_grad,
                is_candidate=False,
                results=results_of(potential.results),
                depends_on_parameter=seen.depends_on_parameter,
                inputs=seen.inputs,
                label=potential.label,
                weighings=potential.origin.weighings,
            )
            point.whole = self._input_of(static.origins.whole_of(seen.z))
            self._include(point, seen, potential.layer)
            region.points.append(point)
        given = {edge for _, edge in edges}
        for call in static.outputs.calls:
            # What a loss in the graph does not reach is no output, unless other losses may reach it.
            targets = [
                returned(target)
                for target in call.targets
                if (not self._has_loss or not given.isdisjoint(target.edges)) and _is_there(target, numbers)
            ]
            region.calls.append((targets, places_of(call.edges), call.is_trained))
        if not self._has_loss:
            region.inputs_of_losses = [
                replace(returned(target), edges=results_of(target.edges))
                for target in static.outputs.inputs_of_losses
                if _is_there(target, numbers)
            ]
        by_edge = {edge: place for place, edge in edges if edge[0] is not None}
        for edge, place in by_edge.items():
            ways = ways_to(by_edge, edge)
            region.ways.extend((place, by_edge[way.edge], way.is_of_terms) for way in ways)
        used = {end for _, end, _ in region.ways}
        for place, tensor in results:
            origin = static.origins.find(tensor)
            if origin is not None:
                # Of what leaves the graph, only the graph knows of what it is a nonlinear function, value by value.
                root = static.origins.root(origin)
                entering = None if root.entering is None else mention(root.entering)
                whole = whole_of(origin)
                if whole is None and place in used and may_be_output(tensor):
                    # A gradient that another result hands to it inside the graph is no gradient of this result.
                    whole = mention(tensor)
                source = None if place.is_input and origin.source is None else source_of(origin.source)
                region.origins.append(
                    ResultOrigin(
                        place,
                        source,
                        origin.unit_dim,
                        origin.is_made,
                        origin.is_weight,
                        origin.is_bent,
                        origin.made_of,
                        known(origin),
                        entering,
                        whole,
                        origin.weighings,
                    )
                )
        for point, potential in zip(region.points, static.ledger.potentials, strict=False):
            top = static.origins.stands_for(cast(Origin, potential.origin))
            computed = top.reference()
            if computed is not None and top is not potential.origin and (top.is_returned or id(computed) in candidates):
                point.returned = next(iter(mention(computed).points), None)

    def _input_of(self, tensor: Tensor) -> Place | None:
        giver = self._givers.get(id(tensor), [None])[0]
        is_input = giver is not None and giver.op == "placeholder"
        return Place(True, self._placeholders.index(giver)) if is_input and giver is not None else None

    def _include(self, point: Point, seen: _Seen, layer: str) -> None:
        if seen.givers[-1].op == "placeholder":
            point.input = Place(True, self._placeholders.index(seen.givers[-1]))
        has_gradient = seen.has_grad and seen.z.requires_grad
        is_overwritten = seen.in_place or version_of(seen.z) != seen.version
        # A loss may be told of logits whose softmax was taken before.
        is_read = any(giver in seen.user.all_input_nodes for giver in seen.givers)
        user = seen.user if is_read else None
        self._rewriting.include(point, seen.z, seen.givers, user, has_gradient, is_overwritten)
        if not seen.in_place or point.coefficient is None:
            return
        function = _function(seen.user)
        activation = self._static.nonlinearities.hidden.get(function)
        if activation is None and function in overwriting():
            activation = Activation(function.__name__, None, getattr(Tensor, function.__name__[:-1], None))
        if activation is None:
            raise NotImplementedError(
                f"Layer {layer!r}, of a module class in the argument `activations`, overwrites its potentials"
                " inside a compiled function. Let it work out of place."
            )
        self._rewriting.work_out_of_place(seen.user, function, activation)


def _is_there(target: Target[_Seen], numbers: dict[int, int]) -> bool:
    return target.tensor is not None or any(id(potential) in numbers for potential in target.potentials)


def _modules_around(node: fx.Node) -> list[_Entry]:
    """The calls of modules in which a node was traced, the outermost first."""
    return [(key, name) for key, (name, _) in node.meta.get(_MODULE_STACK, {}).items()]


def _is_inside(node: fx.Node, entry: _Entry) -> bool:
    return node.op.startswith("call") and entry in _modules_around(node)


def _function(node: fx.Node) -> Any:
    return getattr(Tensor, str(node.target), None) if node.op == "call_method" else node.target


def _without_values(value: Any) -> Any:
    """A tensor with the shape and the need for gradient of another one, to run a graph on."""
    if isinstance(value, torch.SymInt):
        return value.node.hint
    if not isinstance(value, Tensor):
        return value
    empty = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=value.device)
    if isinstance(value, nn.Parameter):
        return nn.Parameter(empty, requires_grad=value.requires_grad)
    # Not a leaf, so that the graph may overwrite it.
    return empty.requires_grad_().clone() if value.requires_grad else empty
