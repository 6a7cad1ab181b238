"""Recurrent networks, and the same networks unrolled by hand: one equation for each gate, step and sequence."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from tests.support.reference import Reduction, layer_term, penalty_of_terms

FEATURES, HIDDEN, STEPS, BATCH, CLASSES = 4, 3, 5, 4, 2
LENGTHS = (3, 1, 5, 2)
GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3}


@dataclass(frozen=True)
class Setting:
    """A recurrent layer, how it is called, and what the loss makes of its results."""

    kind: str
    levels: int = 1
    bidirectional: bool = False
    bias: bool = True
    batch_first: bool = True
    dropout: float = 0.0
    proj_size: int = 0
    packing: str = ""  # "sorted" or "unsorted" lengths
    unbatched: bool = False
    learned_states: bool = False
    readout: int = 0  # which of output, h_n, c_n
    frozen: bool = False

    def __str__(self) -> str:
        changed = (f"{key}={value}" for key, value in vars(self).items() if value != getattr(Setting, key, None))
        return " ".join(changed).removeprefix("kind=")

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def lengths(self) -> tuple[int, ...]:
        if self.packing:
            return tuple(sorted(LENGTHS, reverse=True)) if self.packing == "sorted" else LENGTHS
        return (STEPS,) if self.unbatched else (STEPS,) * BATCH


class Recurrent(nn.Module):
    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.setting = s = setting
        size = s.proj_size or HIDDEN
        kinds = {"rnn_tanh": nn.RNN, "rnn_relu": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
        options: dict[str, Any] = {"nonlinearity": s.kind[4:]} if s.kind.startswith("rnn") else {}
        if s.proj_size:
            options["proj_size"] = s.proj_size
        self.rnn = kinds[s.kind](
            FEATURES,
            HIDDEN,
            s.levels,
            bias=s.bias,
            batch_first=s.batch_first,
            dropout=s.dropout,
            bidirectional=s.bidirectional,
            **options,
        )
        self.rnn.requires_grad_(not s.frozen)
        self.states = nn.ParameterList()
        if s.learned_states:
            sizes = (size, HIDDEN) if s.kind == "lstm" else (size,)
            shape = (s.levels * s.directions, *(() if s.unbatched else (len(s.lengths),)))
            self.states = nn.ParameterList(nn.Parameter(torch.randn(*shape, n)) for n in sizes)
        widths = (size * s.directions, size, HIDDEN)
        self.head = nn.Linear(widths[s.readout], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        s = self.setting
        states = tuple(self.states)
        hx = (states if len(states) > 1 else states[0]) if states else None
        x = x[0] if s.unbatched else x if s.batch_first else x.transpose(0, 1)
        if s.packing:
            x = pack_padded_sequence(x, torch.tensor(s.lengths), s.batch_first, s.packing == "sorted")
        output, last = self.rnn(x, hx)
        read = (output, *last)[s.readout] if s.kind == "lstm" else (output, last)[s.readout]
        read = read.data if isinstance(read, PackedSequence) else read
        if s.readout == 0 and not (s.packing or s.unbatched or s.batch_first):
            read = read.transpose(0, 1)
        return self.head(read)


class CellLoop(nn.Module):
    def __init__(self, kind: str, bias: bool = True) -> None:
        super().__init__()
        kinds = {"rnn_tanh": nn.RNNCell, "rnn_relu": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}
        options = {"nonlinearity": kind[4:]} if kind.startswith("rnn") else {}
        self.kind = kind
        self.cell = kinds[kind](FEATURES, HIDDEN, bias=bias, **options)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return self.head(state[0] if self.kind == "lstm" else state)


def step(kind: str, x: Tensor, h: Tensor, c: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """One time step, as in torch's documentation: the gates' potentials, the new hidden and cell state."""
    rows = range(GATES[kind])
    zero = torch.zeros(GATES[kind] * HIDDEN, dtype=x.dtype)
    w_x, w_h = weights["weight_ih"].chunk(len(rows)), weights["weight_hh"].chunk(len(rows))
    b_x, b_h = weights.get("bias_ih", zero).chunk(len(rows)), weights.get("bias_hh", zero).chunk(len(rows))
    from_x = [x @ w_x[k].T + b_x[k] for k in rows]
    from_h = [h @ w_h[k].T + b_h[k] for k in rows]
    if kind == "gru":
        z_r, z_z = from_x[0] + from_h[0], from_x[1] + from_h[1]
        z_n = from_x[2] + torch.sigmoid(z_r) * from_h[2]
        z = torch.cat([z_r, z_z, z_n], -1)
        z_r, z_z, z_n = z.chunk(3, -1)
        update = torch.sigmoid(z_z)
        return z, (1 - update) * torch.tanh(z_n) + update * h, c
    z = torch.cat([a + b for a, b in zip(from_x, from_h, strict=True)], -1)
    if kind != "lstm":
        return z, torch.tanh(z) if kind == "rnn_tanh" else torch.relu(z), c
    i, f, g, o = z.chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return z, h @ weights["weight_hr"].T if "weight_hr" in weights else h, c


def unrolled(network: Recurrent, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits, and the potentials of each layer by its name."""
    s = network.setting
    lengths = s.lengths
    x = [batch[b, :length] for b, length in enumerate(lengths)]
    named = dict(network.rnn.named_parameters())
    h_n, c_n, potentials = [], [], {}
    for level in range(s.levels):
        outputs: list[list[Tensor]] = [[] for _ in x]
        for direction, suffix in enumerate(("", "_reverse")[: s.directions]):
            end = f"_l{level}{suffix}"
            weights = {key.removesuffix(end): value for key, value in named.items() if key.endswith(end)}
            noted, last_h, last_c = [], [], []
            for b, sequence in enumerate(x):
                h, c = _initial(network, level * s.directions + direction, b)
                z_of, h_of = {}, {}
                for t in range(lengths[b])[:: -1 if direction else 1]:
                    z_of[t], h, c = step(s.kind, sequence[t], h, c, weights)
                    h_of[t] = h
                noted.append(torch.stack([z_of[t] for t in range(lengths[b])]))
                outputs[b].append(torch.stack([h_of[t] for t in range(lengths[b])]))
                last_h.append(h)
                last_c.append(c)
            layer = "rnn" if s.levels * s.directions == 1 else f"rnn.l{level}{suffix}"
            potentials[layer] = _together(noted, s)
            h_n.append(torch.stack(last_h))
            c_n.append(torch.stack(last_c))
        x = [torch.cat(both, -1) for both in outputs]
        if level < s.levels - 1:
            x = _dropped(x, s)
    read = (_together(x, s), torch.stack(h_n), torch.stack(c_n))[s.readout]
    if s.unbatched:
        read = read[0] if s.readout == 0 else read[:, 0]
    logits = network.head(read)
    return logits, {**potentials, "head": logits}


def unrolled_cells(network: CellLoop, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits, and the potentials of each layer by its name."""
    weights = dict(network.cell.named_parameters())
    h = c = torch.zeros(len(batch), HIDDEN, dtype=batch.dtype)
    potentials = {}
    for t in range(batch.shape[1]):
        potentials[f"cell:{t}" if t else "cell"], h, c = step(network.kind, batch[:, t], h, c, weights)
    logits = network.head(h)
    return logits, {**potentials, "head": logits}


def _initial(network: Recurrent, layer: int, b: int) -> tuple[Tensor, Tensor]:
    zeros = [torch.zeros(n, dtype=torch.float64) for n in (network.setting.proj_size or HIDDEN, HIDDEN)]
    given = [state[layer] if network.setting.unbatched else state[layer, b] for state in network.states]
    h, c = [*given, *zeros[len(given) :]]
    return h, c


def _together(sequences: list[Tensor], s: Setting) -> Tensor:
    """A padded batch, or the rows of packed sequences: first steps first, longest sequences first."""
    if not s.packing:
        return torch.stack(sequences)
    longest_first = sorted(sequences, key=len, reverse=True)
    return torch.stack([z[t] for t in range(STEPS) for z in longest_first if t < len(z)])


def _dropped(sequences: list[Tensor], s: Setting) -> list[Tensor]:
    """Dropout, drawn in the order in which torch keeps the values: by time, then by sequence, longest first."""
    order = sorted(range(len(sequences)), key=lambda b: -len(sequences[b]))
    places = [(t, b) for t in range(STEPS) for b in order if t < len(sequences[b])]
    rows = F.dropout(torch.stack([sequences[b][t] for t, b in places]), s.dropout, training=True)
    row_of = dict(zip(places, rows, strict=True))
    return [torch.stack([row_of[t, b] for t in range(len(z))]) for b, z in enumerate(sequences)]


def penalty(potentials: dict[str, Tensor], reduction: Reduction) -> Tensor:
    """R of layers that have their units in the last dimension."""
    terms = [layer_term([[z]], reduction, lambda z: z.shape[-1]) for z in potentials.values()]
    return penalty_of_terms(terms, reduction)
