"""Potentials inside functions made by `torch.compile`.

While a capture is entered, the compiler is handed each graph in a form that tells of its potentials, and each run of
the compiled graph tells the capture of them. What a graph takes and gives for this:

- the sum of squares of each potential, an output of one number, which becomes a part of the kernels around it;
- a coefficient for each potential, an input of one number. Where gradient passes the potential, the coefficient times
  the potential is added to it. The coefficients are 0 until a backward pass is prepared: only the backward of the
  graph reads them, so that λ or a loss scale may change without another compilation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch._dynamo.comptime import comptime
from torch._inductor import config as inductor_config

from lightning_psp.capture.graph import Edge
from lightning_psp.capture.origin import Measured, Origin, Potential, Source, is_within
from lightning_psp.capture.outputs import Call, Target
from lightning_psp.compilation.analysis import find_potentials
from lightning_psp.compilation.region import Mention, Region, Returned
from lightning_psp.compilation.rewriting import Place, Point, copy_graph

if TYPE_CHECKING:
    from lightning_psp.capture.mode import Capture

_entered: list[Capture[Any]] = []


@contextmanager
def told_of_graphs(capture: Capture[Any]) -> Iterator[None]:
    """While open, compiled graphs tell this capture of their potentials."""
    _entered.append(capture)
    # Without a mode of functions, which compiled code does not see, transformers of torch run in one fused kernel where
    # no gradient is asked for.
    had_fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(had_fast_path)
        _entered.remove(capture)


def announce_graph(key: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls a function while it is traced, and has the graph that is being made searched for potentials.

    Args:
        key: what compiled code depends on; tracing takes place anew for another one.
        function: the function.
        args: its arguments.
        kwargs: its arguments by keyword.
    """
    if key:
        comptime(_wrap_compiler)
    return function(*args, **kwargs)


def _wrap_compiler(context: Any) -> None:
    graph = context._i_will_not_complain_if_bc_breaks_InstructionTranslator().output
    if not hasattr(graph.compiler_fn, "tells_of_potentials"):
        graph.compiler_fn = _with_potentials(graph.compiler_fn)


def _with_potentials(compile_graph: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a compiler of graphs that tell of their potentials."""

    @functools.wraps(compile_graph)
    def compile_with_potentials(graph: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Callable[..., Any]:
        if not _entered:
            plain: Callable[..., Any] = compile_graph(graph, inputs, **options)
            return plain
        graph = copy_graph(graph)
        with _entered[-1].suspended():
            region = find_potentials(graph, inputs, _entered[-1])
        used = {index for point in region.points if not point.depends_on_parameter for index in point.inputs}
        compiled = compile_graph(graph, [*inputs, *_coefficients(region)], **options)
        if uses_cuda_graphs(compile_graph, [device for device, _ in region.coefficients]):
            raise NotImplementedError(
                "CUDA graphs, which `torch.compile` uses with this mode or these options, copy their inputs before the"
                " penalty on potentials is known. Compile with mode='default' or 'max-autotune-no-cudagraphs'."
            )

        def run(*values: Any) -> Any:
            coefficients = _coefficients(region)
            capture = _entered[-1] if _entered else None
            if capture is None:
                return compiled(*values, *coefficients)[: region.number_of_results]
            if capture.checkpoints.regions and coefficients:
                layer = region.sources[region.points[0].source].name
                raise NotImplementedError(
                    f"The potentials of layer {layer!r} lie inside a function made by `torch.compile`"
                    " that an activation checkpoint runs, and would be missing when the checkpoint runs it again."
                    " Compile this part of the network or checkpoint it, not both."
                )
            # Before the graph overwrites an input, which then has another history.
            sources = {index: (values[index].grad_fn, values[index].output_nr) for index in used}
            with capture.suspended():
                outputs = compiled(*values, *coefficients)
            if not capture.suppressed:
                _Run(region, capture, values, sources, outputs, coefficients).tell()
            return outputs[: region.number_of_results]

        return run

    compile_with_potentials.tells_of_potentials = True  # type: ignore[attr-defined]
    return compile_with_potentials


def uses_cuda_graphs(compile_graph: Callable[..., Any], devices: Iterable[torch.device]) -> bool:
    """Whether a compiler has devices replay what they were recorded to do."""
    name = getattr(compile_graph, "__name__", "")
    options = getattr(compile_graph, "config", None) or {}
    is_inductors_choice = name == "inductor" and options.get("triton.cudagraphs", inductor_config.triton.cudagraphs)
    return (is_inductors_choice or name == "cudagraphs") and any(device.type == "cuda" for device in devices)


def _coefficients(region: Region) -> list[Tensor]:
    # Each has memory of its own: compiled code may copy an input that does not start at an aligned address.
    return [torch.zeros((), device=device, dtype=dtype) for device, dtype in region.coefficients]


class _Run:
    """One run of a compiled graph, of which a capture is to be told."""

    def __init__(
        self,
        region: Region,
        capture: Capture[Any],
        inputs: Sequence[Any],
        sources: dict[int, Edge],
        outputs: Sequence[Any],
        coefficients: list[Tensor],
    ) -> None:
        self._region = region
        self._capture = capture
        self._inputs = inputs
        self._sources = sources
        self._outputs = outputs
        self._coefficients = coefficients
        self._prefix = capture.frames.innermost_path()
        self._neurons: dict[int, Source] = {}
        # Before an input that the graph has overwritten is known as something else.
        places = {place for point in region.points for place in (point.input, point.whole) if place is not None}
        self._given = {place: capture.origins.of(inputs[place.number]) for place in places}
        self._evaluations: dict[int, object] = {}
        known = [capture.origins.find(value) for value in inputs if isinstance(value, Tensor)]
        self._weighings = max((origin.weighings for origin in known if origin is not None), default=0)
        self._potentials: list[Potential[Any] | None] = []
        self._stand_ins: list[Tensor | None] = []

    def tell(self) -> None:
        """Tells the capture what the graph has made."""
        capture, region = self._capture, self._region
        has_shadow = not capture.ledger.skips_without_grad
        node = capture.graph.node("compiled", list(self._inputs)) if has_shadow else None
        for found in region.origins:
            origin = capture.origins.renew(self._tensor(found.place))
            if node is not None and found.is_made:
                origin.node = node.copy()  # a returned tensor does not depend on another one
        for point in region.points:
            self._tell_point(point)
        for point, stand_in in zip(region.points, self._stand_ins, strict=True):
            if point.returned is not None and stand_in is not None:
                whole = self._stand_ins[point.returned]
                assert whole is not None
                capture.origins.of(stand_in).whole = capture.origins.of(whole)
        for found in region.origins:
            origin = capture.origins.of(self._tensor(found.place))
            origin.source = None if found.source is None else self._source(found.source)
            origin.unit_dim, origin.made_of = found.unit_dim, found.made_of
            origin.is_made, origin.is_weight, origin.is_bent = found.is_made, found.is_weight, found.is_bent
            origin.weighings = self._weighings + found.weighings
            self._mark(self._tensor(found.place), found.mention)
            if found.entering is not None:
                origin.entering = self._tensor_of(found.entering)
            if found.whole is not None:
                whole = self._tensor_of(found.whole)
                origin.whole = capture.origins.of(whole)
                capture.origins.hold_base(self._tensor(found.place), whole)
        for returned, places, is_trained in region.calls:
            targets = [self._target(found) for found in returned]
            capture.outputs.calls.append(Call(targets, self._edges(places), is_trained))
        capture.outputs.inputs_of_losses.extend(self._target(found) for found in region.inputs_of_losses)
        if not capture.ledger.in_call:
            for found in region.origins:
                tensor = self._tensor(found.place)
                if tensor.ndim == 0 and capture.ledger.counts():
                    capture.outputs.note_scalar(tensor, capture.graph.edge(tensor))

    def _target(self, returned: Returned) -> Target[Any]:
        mention = returned.mention
        edges = self._edges(returned.edges)
        path = self._rebased(returned.path)
        if mention.points and self._potentials[mention.points[0]] is not None:
            potentials = [found for number in mention.points if (found := self._potentials[number]) is not None]
            return Target(edges, None, None, potentials, path, returned.may_be_term)
        tensor = self._tensor_of(mention)
        return Target(edges, tensor, self._capture.origins.of(tensor), [], path, returned.may_be_term)

    def _source(self, number: int) -> Source:
        found = self._neurons.get(number)
        if found is None:
            neurons = self._region.sources[number]
            evaluation = self._evaluations.setdefault(neurons.evaluation, object())
            path = None if neurons.path is None else self._rebased(neurons.path)
            found = self._neurons[number] = Source(path, evaluation)
            if neurons.place is not None:
                place = self._rebased(neurons.place)
                if neurons.is_counted:
                    self._capture.frames.count_place(found, place)
                else:
                    found.place = place
        return found

    def _tell_point(self, point: Point) -> None:
        capture = self._capture
        z = self._tensor(point.outputs[0]) if capture.reduction is None else torch.empty(1)
        origin = capture.origins.of(z)
        origin.measured = self._measured(point)
        origin.unit_dim, origin.is_made = point.unit_dim, True
        origin.weighings = self._weighings + point.weighings
        origin.source = self._source(point.source)
        self._stand_ins.append(z)
        if point.is_candidate or (capture.ledger.skips_without_grad and not point.has_grad):
            self._potentials.append(None)
            return
        if point.whole is not None and point.whole != point.input:
            origin.whole = self._given[point.whole]
        if point.input is not None:
            given = self._given[point.input]
            origin.unit_dim = given.unit_dim
            if given.source is not None and given.source.name is not None:
                origin.source = given.source
            origin.values = given.values
            top = capture.origins.top(given)
            if point.is_output and top is not given and self._is_told_whole(point, top, origin.measured.results):
                return
            if origin.values.potentials:  # another nonlinearity has read it
                known: Potential[Any] = origin.values.potentials[0]
                known.is_output = known.enters_loss = known.is_output or point.is_output
                known.results.extend(origin.measured.results)
                self._potentials.append(known)
                return
        in_call, capture.ledger.in_call = capture.ledger.in_call, capture.ledger.in_call or point.in_call
        try:
            potential = capture.ledger.add(z, point.label, in_place=False, is_output=point.is_output)
        finally:
            capture.ledger.in_call = in_call
        potential.enters_loss = point.is_output
        self._potentials.append(potential)

    def _is_told_whole(self, point: Point, top: Origin, results: list[Edge]) -> bool:
        """Tells of logits that are a part or a multiple of a tensor outside the graph, which stands for them."""
        whole = top.reference()
        if not top.values.potentials:
            if whole is None or not self._capture.ledger.is_potential(whole):
                return False
            self._capture.ledger.add(whole, point.label, in_place=False, is_output=True)
        for potential in top.values.potentials:
            potential.is_output = potential.enters_loss = True
            potential.results.extend(results)
        self._potentials.append(top.values.potentials[0])
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
        self._capture.origins.renew(stand_in)
        self._mark(stand_in, mention)
        return stand_in

    def _edges(self, places: Sequence[Place]) -> list[Edge]:
        return [self._capture.graph.edge(self._tensor(place)) for place in places]

    def _mark(self, tensor: Tensor, mention: Mention) -> None:
        origin = self._capture.origins.of(tensor)
        potentials = [other for other in (self._potentials[number] for number in mention.points) if other is not None]
        if mention.is_result:
            origin.potential = potentials[0] if potentials else None
        elif potentials:
            origin.values.potentials = potentials

    def _rebased(self, path: str) -> str:
        """The same path in the module that runs the graph, which may be another one of the same class."""
        prefix = self._region.prefix
        if prefix in ("", self._prefix) or not (path == prefix or is_within(path, prefix)):
            return path
        return f"{self._prefix}{path[len(prefix) :]}".lstrip(".")
