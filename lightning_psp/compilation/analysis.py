"""Finding the potentials of a graph that `torch.compile` traced.

The graph is run once on tensors without values under a capture of its own, so that the rules inside a compiled function
are those outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from lightning_psp.capture.graph import Edge, reach_from
from lightning_psp.capture.mode import Capture
from lightning_psp.capture.module_calls import RETURNED
from lightning_psp.capture.origin import ACTIVATED, Origin, Potential, Source, tensors_in
from lightning_psp.capture.shadow import ShadowNode
from lightning_psp.compilation.description import Description, Result, Seen, function_of_node
from lightning_psp.compilation.region import Region
from lightning_psp.compilation.rewriting import Place, Rewriting
from lightning_psp.functional.reductions import Reduction
from lightning_psp.torch_private.compiler import without_values
from lightning_psp.torch_private.tensors import version_of

_MODULE_STACK = "nn_module_stack"
_EXAMPLE = "example_value"
_CUSTOM = "autograd_function_apply"  # which runs a `torch.autograd.Function`
# A call of a module: the number of the module with that of the call, and where the module was found. Both differ
# between two calls only if the module was found in the same place.
_Entry: TypeAlias = tuple[str, str]


def find_potentials(
    graph: fx.GraphModule,
    examples: Sequence[Any],
    *,
    make_capture: Callable[[Callable[[Tensor, Potential[Seen], bool], Seen]], Capture[Seen]],
    network: nn.Module,
    known: Callable[[Any], Origin | None],
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
        known: gives what is known of an input, if anything is.
        prefix: path of the module in whose forward the graph is made.
        reduction: reduction of the penalty; None if the values of potentials are asked for.

    Raises:
        NotImplementedError: if a potential lies where it cannot be told of.
    """
    is_dynamic = any(not isinstance(example, Tensor) for example in examples)
    rewriting = Rewriting(graph, reduction, is_dynamic)
    region = Region(prefix, rewriting.number_of_results, rewriting.coefficients)
    _Analysis(graph, make_capture, network).find(region, rewriting, examples, known)
    rewriting.finish()
    return region


class _Analysis(fx.Interpreter):
    def __init__(
        self,
        graph: fx.GraphModule,
        make_capture: Callable[[Callable[[Tensor, Potential[Seen], bool], Seen]], Capture[Seen]],
        network: nn.Module,
    ) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self._static = make_capture(self._see)
        self._records = self._static.records
        self._modules = {str(id(module)): module for module in network.modules()}
        self._nodes = list(graph.graph.nodes)
        self._stack: list[tuple[_Entry, nn.Module]] = []
        self._node = self._nodes[0]  # that is being run
        self._givers: dict[int, list[fx.Node]] = {}  # by the identity of the tensor
        self._edges_of_inputs: dict[int, Edge] = {}
        self._sources_of_inputs: dict[int, Source] = {}

    def find(
        self,
        region: Region,
        rewriting: Rewriting,
        examples: Sequence[Any],
        known: Callable[[Any], Origin | None],
    ) -> None:
        """Runs the graph on tensors like the examples, and describes what that shows; see :func:`find_potentials`."""
        has_grad = torch.is_grad_enabled()
        # Tensors made in inference mode do not say whether they are overwritten.
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(has_grad),
            without_values(),
            self._static,
        ):
            self._find(region, rewriting, examples, known)

    def _find(
        self,
        region: Region,
        rewriting: Rewriting,
        examples: Sequence[Any],
        known: Callable[[Any], Origin | None],
    ) -> None:
        with self._static.suspended():
            inputs = [_without_values(example) for example in examples]
        before = [version_of(tensor) if isinstance(tensor, Tensor) else 0 for tensor in inputs]
        for index, (tensor, example) in enumerate(zip(inputs, examples, strict=True)):
            if not isinstance(tensor, Tensor):
                continue
            origin, outside = self._records.origins.of(tensor), known(example)
            if outside is not None:
                origin.is_weight, origin.weight = outside.is_weight, outside.weight
                # Whether an input is a state itself shows in each run.
                origin.made_of = min(outside.made_of, ACTIVATED)
            if not isinstance(tensor, nn.Parameter):
                origin.is_made = tensor.requires_grad or (outside is not None and outside.is_made)
                if origin.is_made and not tensor.requires_grad:
                    origin.node = ShadowNode("input", [])
                if origin.is_made and not origin.is_weight:
                    origin.source = self._sources_of_inputs[index] = Source(None)
                self._edges_of_inputs[index] = self._records.graph.edge(tensor)
        outputs = self.run(*inputs)
        self._enter_modules([])
        numbers = [tensor for tensor in outputs if isinstance(tensor, Tensor) and tensor.ndim == 0]
        losses = [edge for tensor in numbers if (edge := self._records.graph.edge(tensor))[0] is not None]
        has_loss = bool(losses) and not self._records.ledger.in_call
        if has_loss:
            self._static.settle(losses)
        overwritten = [
            (Place(True, index), tensor)
            for index, tensor in enumerate(inputs)
            if isinstance(tensor, Tensor) and version_of(tensor) != before[index]
        ]
        given = [(Place(False, index), tensor) for index, tensor in enumerate(outputs) if isinstance(tensor, Tensor)]
        frames = self._records.frames
        description = Description(
            region,
            rewriting,
            results=[Result(place, tensor, self._records.graph.edge(tensor)) for place, tensor in overwritten + given],
            givers=self._givers,
            placeholders=[node for node in self._nodes if node.op == "placeholder"],
            edges_of_inputs=self._edges_of_inputs,
            sources_of_inputs=self._sources_of_inputs,
            dependence=self._dependence,
            origins=self._records.origins,
            edge_of=self._records.graph.edge,
            activations=self._static.nonlinearities.hidden,
            outer=[frame.turns for frame in (frames.outside, *frames.resumed)],
            has_loss=has_loss,
        )
        description.describe(self._static.potentials, self._static.possible_outputs(losses), self._records.outputs)
        description.describe_unseen(self._records.witness)

    # --- running the graph -----------------------------------------------------------------------------------------

    def run_node(self, n: fx.Node) -> Any:
        """Runs a node inside the modules that it was traced in."""
        self._node = n
        if n.op.startswith("call"):
            self._enter_modules(_modules_around(n))
        number = _number_read_by(n)
        result = super().run_node(n) if number is None else number
        if getattr(n.target, "__name__", "") == _CUSTOM:
            self._note_custom(n, result)
        # Of several tensors, further nodes give each.
        if isinstance(result, Tensor) and n.op != "output":
            self._givers.setdefault(id(result), []).append(n)
        return result

    def _note_custom(self, node: fx.Node, result: Any) -> None:
        """Tells of a `torch.autograd.Function`, into which nothing looks."""
        records = self._records
        given = [records.origins.find(self.env[before]) for before in node.all_input_nodes if before in self.env]
        made = next((origin for origin in given if origin is not None and origin.is_made), None)
        for tensor in tensors_in(result):
            if made is not None and records.ledger.in_call and tensor.grad_fn is not None:
                path = records.frames.innermost_path()
                records.witness.note_custom(path, made, records.origins.of(tensor), records.graph.edge(tensor))

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
        """The tensors that a module returns; where that is not told, those that are used outside, or else the last."""
        returned = [
            (node.meta[RETURNED][entry], value)
            for node, value in self.env.items()
            if isinstance(value, Tensor) and entry in node.meta.get(RETURNED, ())
        ]
        if returned:
            return [value for _, value in sorted(returned, key=lambda found: found[0])]
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

    def _see(self, z: Tensor, potential: Potential[Seen], in_place: bool) -> Seen:
        givers = self._givers.get(id(z))
        if givers is None and function_of_node(self._node) in self._static.nonlinearities.hidden:
            givers = self._node.all_input_nodes[:1]  # what overwrites a view works on a copy of it
        if not givers:
            raise NotImplementedError(
                f"The potentials of layer {potential.layer!r} lie inside an operation of a compiled function that"
                " cannot be looked into, such as an activation checkpoint or a recurrent cell. Leave the layer out of"
                " the compiled code: put `torch.compiler.disable` around its module or the checkpointed function."
            )
        has_grad = torch.is_grad_enabled()
        in_call = self._records.ledger.in_call
        source = self._records.origins.of(z).source
        return Seen(
            z, source, list(givers), self._node, in_place, version_of(z), in_call, has_grad, *self._dependence(z)
        )

    def _dependence(self, tensor: Tensor) -> tuple[bool, list[int]]:
        """Whether a trained parameter is among what a tensor is made of, and which other inputs of the graph are."""
        reached = reach_from((tensor.grad_fn, tensor.output_nr))
        above = reached.nodes_of_parameters
        inputs = [index for index, edge in self._edges_of_inputs.items() if edge in reached.edges]
        return above is None or tensor.grad_fn in above, inputs


def _number_read_by(node: fx.Node) -> Any:
    """What a node read when it was traced, where it reads a number: tensors without values do not tell it."""
    read = node.meta.get(_EXAMPLE) if node.op == "call_method" and node.target == "item" else None
    return getattr(getattr(read, "node", None), "hint", None)


def _modules_around(node: fx.Node) -> list[_Entry]:
    """The calls of modules in which a node was traced, the outermost first."""
    return [(key, name) for key, (name, _) in node.meta.get(_MODULE_STACK, {}).items()]


def _is_inside(node: fx.Node, entry: _Entry) -> bool:
    return node.op.startswith("call") and entry in _modules_around(node)


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
