"""Rewriting a graph that `torch.compile` traced so that it tells of its potentials and takes their penalty."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from lightning_psp.capture.functions import TorchFunction, name_of, overwriting
from lightning_psp.capture.nonlinearities import Activation
from lightning_psp.functional.penalty import count_units
from lightning_psp.functional.precision import accumulation_dtype
from lightning_psp.functional.reductions import RULES, Reduction
from lightning_psp.torch_private.compiler import copy_argument, mark_as_argument
from lightning_psp.torch_private.functions import same_memory


class Place(NamedTuple):
    """Where something is found when a graph runs: among its inputs or among its outputs."""

    is_input: bool
    number: int


@dataclass
class Point:
    """A tensor of a graph that is a potential, or may turn out to be one.

    Args:
        source: the number of its neurons among those that the graph knows.
        in_call: whether a call of the network in the graph makes it.
        is_output: whether it is known to be the output layer's.
        unit_dim: the dimension of its neurons.
        has_grad: whether gradient is enabled where it arises.
        is_candidate: whether it is no potential yet.
        results: what depends on its nonlinearity, among the graph's results and the inputs that it overwrites.
        depends_on_parameter: whether a trained parameter is among what it is made of.
        inputs: the numbers of the other inputs that it is made of.
        label: its nonlinearity's name.
        weighings: how many weights of the graph have come one after another.
        input: the input that it is.
        whole: the input of which it is a view, a part or a multiple.
        returned: the number of the same where it is a point that a call in the graph returned.
        coefficient: the number of its coefficient; None where no gradient passes it.
        outputs: the outputs that tell of it: its values if these are asked for, else the sum of its squares and (for
            a reduction that squares means) its sum over the batch.
        sizes: its number of values, its number of units and the size of its batch, or the outputs for them.
    """

    source: int
    in_call: bool
    is_output: bool
    unit_dim: int
    has_grad: bool
    is_candidate: bool
    results: list[Place]
    depends_on_parameter: bool
    inputs: list[int]
    label: str
    weighings: int
    input: Place | None = None
    whole: Place | None = None
    returned: int | None = None
    coefficient: int | None = None
    outputs: list[Place] = field(default_factory=list)
    sizes: list[int | Place] = field(default_factory=list)


def copy_graph(module: fx.GraphModule) -> fx.GraphModule:
    """A graph module that can be changed: the tracer goes on using its own."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(module.graph, copies))
    for original, copied in copies.items():
        if original.op == "placeholder":
            copy_argument(original, copied)
    made = fx.GraphModule(module, graph)
    for name, value in vars(module).items():
        made.__dict__.setdefault(name, value)
    made.meta = module.meta
    return made


def out_of_place(function: Any, activations: Mapping[TorchFunction, Activation]) -> Activation | None:
    """How a function that overwrites its argument is called so that it does not; None where it cannot be.

    Args:
        function: the function.
        activations: the nonlinearities.
    """
    if function is operator.setitem:
        return Activation("setitem", None, _assigned)
    if function in activations:
        return activations[function]
    if function in overwriting():
        return Activation(name_of(function), None, getattr(Tensor, name_of(function), None))
    return None


def _assigned(tensor: Tensor, index: Any, value: Any) -> Tensor:
    result = tensor.clone()
    result[index] = value
    return result


class Rewriting:
    """The changes to one graph.

    Args:
        graph: the graph, which is changed.
        reduction: reduction of the penalty; None if the values of potentials are asked for.
        has_dynamic_shapes: whether sizes may differ between runs.
    """

    def __init__(self, graph: fx.GraphModule, reduction: Reduction | None, has_dynamic_shapes: bool) -> None:
        self._module = graph
        self._rule = None if reduction is None else RULES[reduction]
        self._has_dynamic_shapes = has_dynamic_shapes
        nodes = list(graph.graph.nodes)
        self._order = {node: index for index, node in enumerate(nodes)}
        self._last_placeholder = next((node for node in reversed(nodes) if node.op == "placeholder"), None)
        self._output = nodes[-1]
        (results,) = self._output.args
        self._outputs: list[Any] = list(results)
        self.number_of_results = len(self._outputs)
        self.coefficients: list[tuple[torch.device, torch.dtype]] = []
        self._in_place_of: dict[fx.Node, fx.Node] = {}

    def include(
        self,
        point: Point,
        example: Tensor,
        givers: list[fx.Node],
        user: fx.Node | None,
        has_gradient: bool,
        is_overwritten: bool,
    ) -> None:
        """Has the graph tell of a potential, and the gradient of the penalty added where it is read.

        Args:
            point: the potential.
            example: a tensor of its shape.
            givers: the nodes that gave the tensor, the last of them its values.
            user: its nonlinearity; None for what the network returned.
            has_gradient: whether the penalty's gradient can be asked for.
            is_overwritten: whether other values take its place later.
        """
        original = self._in_place_of.get(givers[-1], givers[-1])
        anchor = original.next if user is None else user
        while anchor.op == "placeholder":  # which the coefficients come behind
            anchor = anchor.next
        rule = self._rule if has_gradient else None
        with self._module.graph.inserting_before(anchor):
            value = original
            is_copied = is_overwritten and (self._rule is None or (rule is not None and user is not None))
            if is_copied:
                value = self._module.graph.call_method("clone", (original,))
            self._tell(point, value, example)
            if rule is None:
                return
            point.coefficient = len(self.coefficients)
            coefficient = self._add_coefficient(example)
            passed = _pass_with_penalty_of_mean if rule.squares_means else _pass_with_penalty
            entering = self._module.graph.call_function(passed, (value, coefficient))
            if is_overwritten and user is None:  # in a part: a copy is overwritten in its place
                entering = self._module.graph.call_method("clone", (entering,))
        if is_overwritten and user is not None:
            user.replace_input_with(original, entering)
            return
        first = -1 if user is None else self._order[user]
        for giver in givers:
            known = self._in_place_of.get(giver, giver)
            for other in list(known.users):
                if self._order.get(other, -1) > self._order[givers[-1]] and self._order[other] >= first:
                    other.replace_input_with(known, entering)
            self._outputs[: self.number_of_results] = [
                entering if node is known else node for node in self._outputs[: self.number_of_results]
            ]
            self._in_place_of[giver] = entering

    def work_out_of_place(self, user: fx.Node, function: Any, activation: Activation) -> None:
        """Has a nonlinearity write to new memory and its input overwritten afterwards.

        To be called after :meth:`include`, for which the input is overwritten then.
        """
        target, *others = user.args
        assert isinstance(target, fx.Node)
        overwritten = target
        while overwritten not in self._order:  # go back from what takes its place to what the user's code overwrites
            overwritten = overwritten.all_input_nodes[0]

        def out_of_place(*args: Any, **kwargs: Any) -> Any:
            return activation.out_of_place(function, args, kwargs)

        with self._module.graph.inserting_before(user):
            result = self._module.graph.call_function(out_of_place, (target, *others), dict(user.kwargs))
            copied = self._module.graph.call_method("copy_", (overwritten, result))
        user.replace_all_uses_with(copied)
        self._outputs = [copied if node is user else node for node in self._outputs]
        self._order[copied] = self._order[user]
        self._in_place_of[user] = copied
        self._module.graph.erase_node(user)

    def finish(self) -> None:
        """Puts the changes into force."""
        self._output.args = (tuple(self._outputs),)
        self._module.graph.lint()
        self._module.recompile()

    def _tell(self, point: Point, value: fx.Node, example: Tensor) -> None:
        graph = self._module.graph
        if self._rule is None:
            point.outputs = [self._add_output(value)]
            return
        outputs = [graph.call_function(_square_sum, (value,))]
        if self._rule.squares_means:
            outputs.append(graph.call_function(_batch_sum, (value,)))
        point.outputs = [self._add_output(output) for output in outputs]
        point.sizes = [example.numel(), count_units(example, point.unit_dim), example.shape[0]]
        if self._has_dynamic_shapes:
            nodes = [graph.call_method("numel", (value,)), graph.call_method("size", (value, 0))]
            elements, batch_size = (self._add_output(node) for node in nodes)
            point.sizes = [elements, point.sizes[1], batch_size]

    def _add_output(self, node: fx.Node) -> Place:
        self._outputs.append(node)
        return Place(False, len(self._outputs) - 1)

    def _add_coefficient(self, example: Tensor) -> fx.Node:
        name = f"psp_coefficient_{len(self.coefficients)}"
        self.coefficients.append((example.device, accumulation_dtype(example.dtype)))
        graph = self._module.graph
        with graph.inserting_after(self._last_placeholder):
            self._last_placeholder = graph.placeholder(name)
        # Compilers ask for the variable that an input of a traced graph was; under DDP, for a value of it.
        mark_as_argument(self._last_placeholder, name)
        device, dtype = self.coefficients[-1]
        self._last_placeholder.meta["example_value"] = torch.zeros((), device=device, dtype=dtype)
        return self._last_placeholder


class _PassWithPenalty(torch.autograd.Function):
    """The same values; a coefficient times them is added to their gradient."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, coefficient: Tensor) -> Tensor:
        passed = same_memory(z)
        ctx.save_for_backward(passed, coefficient)
        return passed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _add_product(gradient, *ctx.saved_tensors), None


class _PassWithPenaltyOfMean(torch.autograd.Function):
    """The same values; a coefficient times their mean over the batch is added to their gradient."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, coefficient: Tensor) -> Tensor:
        ctx.save_for_backward(z.mean(dim=0, dtype=coefficient.dtype), coefficient)
        return same_memory(z)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _add_product(gradient, *ctx.saved_tensors), None


def _add_product(gradient: Tensor, potential: Tensor, coefficient: Tensor) -> Tensor:
    exact = gradient.to(coefficient.dtype)
    # A product of what is known in the forward pass may be taken there, where the coefficient is not known yet. This
    # one cannot: its second factor is the potential, but needs the gradient.
    added = exact + coefficient * ((exact + potential.to(coefficient.dtype)) - exact)
    # Without a penalty, an infinite potential or gradient is passed by as it is.
    return torch.where(coefficient == 0, exact, added).to(gradient.dtype)


def _pass_with_penalty(z: Tensor, coefficient: Tensor) -> Tensor:
    passed: Tensor = _PassWithPenalty.apply(z, coefficient)
    return passed


def _pass_with_penalty_of_mean(z: Tensor, coefficient: Tensor) -> Tensor:
    passed: Tensor = _PassWithPenaltyOfMean.apply(z, coefficient)
    return passed


def _square_sum(z: Tensor) -> Tensor:
    return z.detach().to(accumulation_dtype(z.dtype)).square().sum()


def _batch_sum(z: Tensor) -> Tensor:
    return z.detach().sum(dim=0, dtype=accumulation_dtype(z.dtype))
