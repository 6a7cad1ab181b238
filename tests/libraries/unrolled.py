"""Recurrent layers of PyTorch written out, with the gates' pre-activations of each level and direction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


def unroll(
    layer: nn.RNNBase, input: Any, hx: Any = None, lengths: Tensor | None = None, enforce_sorted: bool = True
) -> tuple[Any, list[tuple[Tensor, Tensor]]]:
    """What the layer gives, and the gates' pre-activations of each level and direction.

    These are a tensor of the first step, on which all that follows depends, and those of all steps,
    ``[batch, time, gates]``.
    The lengths of sequences are an argument that some libraries add; they must be those of the input.
    """
    inputs, state = input, hx
    assert lengths is None or set(lengths.tolist()) == {inputs.shape[1]}
    assert layer.dropout == 0 or layer.num_layers == 1, "dropout between levels is not written out"
    assert not getattr(layer, "proj_size", 0)
    packed = None
    if isinstance(inputs, PackedSequence):
        packed = inputs
        inputs, lengths = pad_packed_sequence(packed, batch_first=True)
        assert len(set(lengths.tolist())) == 1, "sequences of one length alone are written out"
    elif not layer.batch_first:
        inputs = inputs.transpose(0, 1)
    states = state if isinstance(state, tuple) else (state,) if state is not None else ()
    last: list[tuple[Tensor, ...]] = []
    potentials = []
    ways = 2 if layer.bidirectional else 1
    for level in range(layer.num_layers):
        results = []
        for way in range(ways):
            suffix = f"l{level}" + ("_reverse" if way else "")
            start = tuple(s[level * ways + way] for s in states)
            result, final, gates = _one_way(layer, inputs, start, suffix, backwards=bool(way))
            results.append(result)
            last.append(final)
            potentials.append(gates)
        inputs = torch.cat(results, -1)
    outputs = inputs
    if packed is not None:
        outputs = pack_padded_sequence(outputs, lengths, batch_first=True, enforce_sorted=False)
        outputs = PackedSequence(outputs.data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
    elif not layer.batch_first:
        outputs = outputs.transpose(0, 1)
    final = tuple(torch.stack(parts) for parts in zip(*last, strict=True))
    return (outputs, final if isinstance(layer, nn.LSTM) else final[0]), potentials


def _one_way(
    layer: nn.RNNBase, inputs: Tensor, start: tuple[Tensor, ...], suffix: str, backwards: bool
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, Tensor]]:
    weights = {
        name: getattr(layer, f"{name}_{suffix}", None) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    zeros = inputs.new_zeros(inputs.shape[0], layer.hidden_size)
    hidden = start or ((zeros, zeros) if isinstance(layer, nn.LSTM) else (zeros,))
    steps = range(inputs.shape[1])
    first = steps[-1] if backwards else 0
    outputs, gates, entering = {}, {}, {}
    for step in reversed(steps) if backwards else steps:
        of_input = nn.functional.linear(inputs[:, step], weights["weight_ih"], weights["bias_ih"])
        of_state = nn.functional.linear(hidden[0], weights["weight_hh"], weights["bias_hh"])
        if isinstance(layer, nn.LSTM):
            z = of_input + of_state
            i, f, g, o = z.chunk(4, -1)
            cell = torch.sigmoid(f) * hidden[1] + torch.sigmoid(i) * torch.tanh(g)
            hidden = (torch.sigmoid(o) * torch.tanh(cell), cell)
        elif isinstance(layer, nn.GRU):
            reset, update = (of_input + of_state)[:, : 2 * layer.hidden_size].chunk(2, -1)
            candidate = of_input.chunk(3, -1)[2] + torch.sigmoid(reset) * of_state.chunk(3, -1)[2]
            z = torch.cat([reset, update, candidate], -1)
            entering[step] = candidate
            keep = torch.sigmoid(update)
            hidden = ((1 - keep) * torch.tanh(candidate) + keep * hidden[0],)
        else:
            z = of_input + of_state
            hidden = (getattr(torch, layer.nonlinearity)(z),)
        gates[step], outputs[step] = z, hidden[0]
        entering.setdefault(step, z)
    whole = torch.stack([gates[k] for k in steps], 1)
    return torch.stack([outputs[k] for k in steps], 1), hidden, (entering[first], whole)
