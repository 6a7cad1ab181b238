"""The potentials of recurrent layers, whose gates torch computes inside fused functions.

A fused function gives the hidden states of all time steps. With them and its input, the pre-activations of its gates
are affine maps of known tensors, and are computed here once more, for all time steps in one product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

RECURRENT_MODULES = (nn.RNNBase, nn.RNNCellBase)

_CELL = ("input", "hx", "w_ih", "w_hh", "b_ih", "b_hh")
_PADDED = ("input", "hx", "params", "has_biases", "num_layers", "dropout", "train", "bidirectional", "batch_first")
_PACKED = ("data", "batch_sizes", "hx", "params", "has_biases", "num_layers", "dropout", "train", "bidirectional")


class Weights(NamedTuple):
    """The weights of the gates of one direction of one level."""

    input: Tensor
    hidden: Tensor
    input_bias: Tensor | None
    hidden_bias: Tensor | None


def gate_potentials(function_name: str, inputs: Tensor, previous: Tensor, weights: Weights) -> Tensor:
    """What enters the sigmoids and hyperbolic tangents of the gates.

    Args:
        function_name: name of the fused function.
        inputs: inputs ``[…, features]``.
        previous: the hidden state ``[…, hidden]`` that each of them meets.
        weights: the weights of the gates.

    Returns:
        Potentials ``[…, gates · hidden]`` in the order of the weights' rows.

    Example:
        >>> weights = Weights(torch.ones(2, 3), torch.eye(2), None, None)
        >>> gate_potentials("rnn_tanh", torch.ones(1, 3), torch.tensor([[0.5, -0.5]]), weights)
        tensor([[3.5000, 2.5000]])
    """
    from_input = functional.linear(inputs, weights.input, weights.input_bias)
    from_hidden = functional.linear(previous, weights.hidden, weights.hidden_bias)
    if not function_name.startswith("gru"):
        return from_input + from_hidden
    size = from_input.shape[-1] // 3
    reset_and_update = from_input[..., : 2 * size] + from_hidden[..., : 2 * size]
    reset = reset_and_update[..., :size].sigmoid()
    new = from_input[..., 2 * size :] + reset * from_hidden[..., 2 * size :]
    return torch.cat([reset_and_update, new], dim=-1)


def previous_states(output: Tensor, initial: Tensor, batch_sizes: Tensor | None, is_reverse: bool) -> Tensor:
    """The hidden state that each time step met, in the layout of the hidden states that the steps gave.

    Args:
        output: hidden states ``[time, batch, hidden]``, or the rows ``[sum of lengths, hidden]`` of packed sequences.
        initial: the initial hidden state ``[batch, hidden]``.
        batch_sizes: for packed sequences, how many of them have a first, second, … step.
        is_reverse: whether time runs backwards.

    Example:
        >>> output, initial = torch.tensor([[[1.0]], [[2.0]], [[3.0]]]), torch.tensor([[9.0]])
        >>> previous_states(output, initial, None, is_reverse=False).flatten()
        tensor([9., 1., 2.])
        >>> previous_states(output, initial, None, is_reverse=True).flatten()
        tensor([2., 3., 9.])
    """
    if batch_sizes is None:
        first = initial.unsqueeze(0)
        return torch.cat([output[1:], first] if is_reverse else [first, output[:-1]])
    time = torch.repeat_interleave(batch_sizes)
    starts = batch_sizes.cumsum(0) - batch_sizes
    sequence = torch.arange(len(time)) - starts[time]
    if is_reverse:
        before = time + 1
        exists = sequence < torch.cat([batch_sizes, batch_sizes.new_zeros(1)])[before]
    else:
        before = time - 1
        exists = before >= 0
    rows = torch.where(exists, len(initial) + starts[before % len(starts)] + sequence, sequence)
    return torch.cat([initial, output]).index_select(0, rows.to(output.device))


@dataclass(frozen=True)
class CellCall:
    """A call of a cell: one time step of one level.

    Args:
        function: the fused function.
        name: its name.
        input: inputs ``[batch, features]``.
        states: the hidden state ``[batch, hidden]``, and the state of an LSTM's cells.
        weights: the weights.
    """

    function: Callable[..., Any]
    name: str
    input: Tensor
    states: tuple[Tensor, ...]
    weights: Weights

    def layers(self, name: str) -> list[str]:
        """The name of the one layer."""
        return [name]

    def run(self, chosen: Sequence[bool]) -> tuple[Any, list[Tensor | None]]:
        """The function's result, and the potentials ``[batch, gates · hidden]`` if the layer is chosen."""
        result = self.function(self.input, self.states if len(self.states) > 1 else self.states[0], *self.weights)
        with _outside_checkpoint():
            potentials = [
                gate_potentials(self.name, self.input, self.states[0], self.weights) if is_chosen else None
                for is_chosen in chosen
            ]
        return result, potentials


@dataclass(frozen=True)
class SequenceCall:
    """A call of a recurrent layer for whole sequences, which may have several levels and two directions.

    Args:
        function: the fused function.
        name: its name.
        input: padded inputs, or the rows of packed sequences.
        batch_sizes: for packed sequences, how many of them have a first, second, … step.
        states: the initial hidden state ``[levels · directions, batch, hidden]``, and that of an LSTM's cells.
        parameters: all weights, level by level and direction by direction.
        has_biases: whether biases are among them.
        levels: number of levels.
        dropout: probability with which an output between two levels is dropped.
        is_training: whether it is dropped at all.
        directions: 1, or 2 where another one runs backwards.
        batch_first: whether the batch is dimension 0 of padded inputs, and time dimension 1.
    """

    function: Callable[..., Any]
    name: str
    input: Tensor
    batch_sizes: Tensor | None
    states: tuple[Tensor, ...]
    parameters: Sequence[Tensor]
    has_biases: bool
    levels: int
    dropout: float
    is_training: bool
    directions: int
    batch_first: bool

    def layers(self, name: str) -> list[str]:
        """The names of the layers: one for each direction of each level."""
        if self.levels * self.directions == 1:
            return [name]
        suffixes = ("", "_reverse")[: self.directions]
        return [f"{name}.l{level}{suffix}" for level in range(self.levels) for suffix in suffixes]

    def run(self, chosen: Sequence[bool]) -> tuple[Any, list[Tensor | None]]:
        """The function's result, and the potentials of the layers that are chosen.

        They are ``[batch, time, gates · hidden]``, or the rows ``[sum of lengths, gates · hidden]`` of packed
        sequences. Levels are run one by one, for what goes on between them to be known.
        """
        inputs = self.input.transpose(0, 1) if self.batch_first else self.input
        potentials: list[Tensor | None] = []
        ends: list[Sequence[Tensor]] = []
        for level in range(self.levels):
            if level > 0:
                inputs = functional.dropout(inputs, self.dropout, self.is_training)
            output, *end = self._run_level(level, inputs)
            ends.append(end)
            for direction in range(self.directions):
                layer = level * self.directions + direction
                potentials.append(self._potentials(layer, inputs, output) if chosen[layer] else None)
            inputs = output
        states = ends[0] if self.levels == 1 else [torch.cat(parts) for parts in zip(*ends, strict=True)]
        return (inputs.transpose(0, 1) if self.batch_first else inputs, *states), potentials

    def _run_level(self, level: int, inputs: Tensor) -> tuple[Tensor, ...]:
        layers = slice(level * self.directions, (level + 1) * self.directions)
        states = tuple(state[layers] for state in self.states)
        per_layer = len(self.parameters) // (self.levels * self.directions)
        parameters = self.parameters[layers.start * per_layer : layers.stop * per_layer]
        hx = states if len(states) > 1 else states[0]
        settings = (self.has_biases, 1, 0.0, self.is_training, self.directions == 2)
        result: tuple[Tensor, ...]
        if self.batch_sizes is None:
            result = self.function(inputs, hx, parameters, *settings, False)
        else:
            result = self.function(inputs, self.batch_sizes, hx, parameters, *settings)
        return result

    def _potentials(self, layer: int, inputs: Tensor, output: Tensor) -> Tensor:
        per_layer = len(self.parameters) // (self.levels * self.directions)
        own = self.parameters[layer * per_layer : (layer + 1) * per_layer]
        weights = Weights(own[0], own[1], own[2] if self.has_biases else None, own[3] if self.has_biases else None)
        direction = layer % self.directions
        own_output = output.tensor_split(self.directions, dim=-1)[direction]
        with _outside_checkpoint():
            previous = previous_states(own_output, self.states[0][layer], self.batch_sizes, is_reverse=direction == 1)
            potentials = gate_potentials(self.name, inputs, previous, weights)
        return potentials.transpose(0, 1) if self.batch_sizes is None else potentials


RecurrentCall: TypeAlias = CellCall | SequenceCall


def parse_call(
    function: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> RecurrentCall | None:
    """Understands a call of a fused recurrent function; None if its arguments are not as they are known here."""
    is_cell = name.endswith("_cell")
    is_packed = "data" in kwargs or (len(args) > 3 and isinstance(args[3], (tuple, list)))
    names: tuple[str, ...] = _CELL if is_cell else _PACKED if is_packed else _PADDED
    given = {**dict.fromkeys(_CELL[4:] if is_cell else ()), **dict(zip(names, args, strict=False)), **kwargs}
    if len(args) > len(names) or given.keys() != set(names):
        return None
    states = (given["hx"],) if isinstance(given["hx"], Tensor) else tuple(given["hx"])
    if is_cell:
        return CellCall(function, name, given["input"], states, Weights(*(given[key] for key in _CELL[2:])))
    return SequenceCall(
        function,
        name,
        input=given["data"] if is_packed else given["input"],
        batch_sizes=given.get("batch_sizes"),
        states=states,
        parameters=given["params"],
        has_biases=given["has_biases"],
        levels=given["num_layers"],
        dropout=given["dropout"],
        is_training=given["train"],
        directions=2 if given["bidirectional"] else 1,
        batch_first=given.get("batch_first", False),
    )


def _outside_checkpoint() -> saved_tensors_hooks:
    # An activation checkpoint counts the tensors that are saved, and expects as many when it runs its function again.
    return saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor)


def attach(result: Any, potentials: Sequence[Tensor]) -> Any:
    """Puts potentials on the path between what a recurrent function returned and the loss.

    A recomputed potential has no use in the loss's graph. What is returned here is `result` with the potentials among
    the nodes that a backward pass from it visits: the gradient that they get from there is zero.

    Args:
        result: a tensor or a tuple of tensors.
        potentials: the potentials that `result` was computed from.
    """
    with_graph = [z for z in potentials if z.requires_grad]
    if not with_graph:
        return result
    tensors = (result,) if isinstance(result, Tensor) else tuple(result)
    attached = _Attach.apply(len(tensors), *tensors, *with_graph)
    return attached[0] if isinstance(result, Tensor) else attached


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(number: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        # A tensor returned as it is would become a view, which in-place functions refuse to overwrite.
        return tuple(tensor.detach() for tensor in tensors[:number])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        number, *tensors = inputs
        ctx.potentials = [(z.shape, z.dtype, z.device) for z in tensors[number:]]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        # Hooks cannot add to a gradient that is None.
        zeros = [torch.zeros((), dtype=dtype, device=device).expand(shape) for shape, dtype, device in ctx.potentials]
        return (None, *gradients, *zeros)
