"""Units that are on for every sample, or off for every sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_psp.analysis.batches import device_of, input_of, moved
from lightning_psp.analysis.results import Result
from lightning_psp.analysis.unchanged import Unchanged
from lightning_psp.recording.potentials import Potentials, check_module, record_potentials


@dataclass(frozen=True, eq=False, repr=False)  # tensors have no single truth value
class ConstantStates(Result):
    """The units of one layer whose state is the same for every sample.

    Args:
        off: numbers of the units that are never on, int64 in ascending order.
        on: numbers of the units that are always on, int64 in ascending order.
        units: how many units the layer has.
    """

    off: Tensor
    on: Tensor
    units: int


@dataclass(frozen=True, eq=False, repr=False)
class ConstantUnits(Result):
    """The units of a network whose state is the same for every sample, layer by layer.

    Given by :func:`constant_units`, which says what a state is.

    Args:
        layers: layer name to the :class:`ConstantStates` of the layer, in order of call.
    """

    layers: dict[str, ConstantStates]


def constant_units(
    module: nn.Module,
    data: Iterable[Any],
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> ConstantUnits:
    """Finds the units of the hidden layers that are on for every sample, or off for every sample.

    The state of a unit is 1 ("on") where its potential z > 0, else 0 ("off"), as in PSP-entropy (Tartaglione et al.,
    2020, Eq. 3). A unit is one entry of ``z[b]``, numbered in the order of ``z.flatten(1)``: unit k of a convolution
    with n positions belongs to channel ⌊k / n⌋. A unit that is constant has a first-order entropy of 0 in every class.
    Behind a ReLU, a unit that is off gives 0, and one that is on gives z itself; the network computes the same without
    the one, and without the other's nonlinearity, for all samples seen.

    The network is called with the first item of each batch, in ``eval()`` and without gradient. Its modes, weights and
    buffers are left as they were. The passes of a layer are further observations of its units, its parts further units.

    Args:
        module: the network.
        data: batches, tuples or lists whose first item the network is called with. They are moved to its device.
        include: glob patterns on layer names.
        exclude: glob patterns on layer names.

    Returns:
        For each hidden layer the numbers of its constant units, on the CPU.

    Raises:
        TypeError: if `module` is no module, or a batch neither a tuple nor a list.
        ValueError: if there is no batch or no hidden layer, a pattern matches no layer, a potential is NaN, or the
            number of a layer's units changes.

    Example:
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> _ = network[0].weight.data.copy_(torch.tensor([[1.0], [1.0], [0.0]]))
        >>> _ = network[0].bias.data.copy_(torch.tensor([0.0, 5.0, -1.0]))
        >>> found = constant_units(network, [(torch.tensor([[-1.0], [1.0]]),)])  # z: -1 and 1, 4 and 6, -1 and -1
        >>> found.layers["0"]
        ConstantStates(off=tensor([2]), on=tensor([1]), units=3)
    """
    check_module(module)
    states: dict[str, dict[int, _States]] = {}
    outputs: dict[str, None] = {}
    unchanged, device = Unchanged(module, data), device_of(module)
    with unchanged, unchanged:
        torch.set_grad_enabled(False)
        module.eval()
        for batch in data:
            inputs = input_of(moved(batch, device))
            if isinstance(inputs, Tensor) and len(inputs) == 0:
                continue
            with record_potentials(module, include=include, exclude=exclude) as potentials:
                module(inputs)
            outputs.update(dict.fromkeys(potentials.layers[entry][0] for entry in potentials.outputs))
            _add(states, potentials)
            potentials.clear()
    if outputs and not states:
        raise ValueError(
            f"Expected argument `module` to have a hidden layer by include={tuple(include)}, exclude={tuple(exclude)}"
            f" but got output layers alone: {', '.join(outputs)}."
        )
    if not states:
        raise ValueError("Expected argument `data` to give at least one batch with samples but got none.")
    return ConstantUnits({layer: _constant_states(parts) for layer, parts in states.items()})


class _States:
    """Which units of a part of a layer have been on, and which off."""

    def __init__(self, units: int, device: torch.device) -> None:
        self.was_on = torch.zeros(units, dtype=torch.bool, device=device)
        self.was_off = torch.zeros_like(self.was_on)

    def add(self, z: Tensor) -> None:
        is_on = z > 0
        self.was_on |= is_on.any(0)
        self.was_off |= ~is_on.all(0)


def _add(states: dict[str, dict[int, _States]], potentials: Potentials) -> None:
    """Adds the states of a batch."""
    for entry, z in potentials.items():
        if entry in potentials.outputs:
            continue
        layer, part = potentials.layers[entry]
        if z.isnan().any():
            raise ValueError(f"Expected the potentials of layer {layer!r} to hold numbers or infinities but got NaN.")
        rows = z.reshape(len(z), -1)
        found = states.setdefault(layer, {}).setdefault(part, _States(rows.shape[1], z.device))
        if len(found.was_on) != rows.shape[1]:
            raise ValueError(
                f"Layer {layer!r} has {len(found.was_on)} units in one pass and {rows.shape[1]} in another. Leave the"
                " layer out with the argument `exclude`, or take inputs of one size."
            )
        found.add(rows)


def _constant_states(parts: Mapping[int, _States]) -> ConstantStates:
    """What was found of a layer, the units of its parts one after another."""
    was_on = torch.cat([part.was_on for _, part in sorted(parts.items())])
    was_off = torch.cat([part.was_off for _, part in sorted(parts.items())])
    off, on = ((~seen).nonzero().flatten().cpu() for seen in (was_on, was_off))
    return ConstantStates(off, on, len(was_on))
