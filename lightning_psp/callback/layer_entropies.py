"""PSP-entropy of the layers of a network over the batches of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_psp.functional.entropy import _add_counts, exact_estimate
from lightning_psp.functional.estimate import EntropyEstimate
from lightning_psp.functional.joint_entropy import _joint_entropy_compute
from lightning_psp.functional.states import _joint_entropy_update, pack_states, unpack_states
from lightning_psp.functional.validation import Unit, count_units


@dataclass
class _PartCounts:
    """What is kept of one part of a layer.

    Args:
        active: how often each unit was active in each class ``[classes, units]``.
        samples: the number of observations of each class.
        states: of every batch, packed in bits; for orders above 1.
        classes: those of these states.
    """

    active: Tensor
    samples: Tensor
    states: list[Tensor] = field(default_factory=list)
    classes: list[Tensor] = field(default_factory=list)

    @classmethod
    def empty(cls, num_classes: int, units: int, device: torch.device) -> _PartCounts:
        """Counts of no batch."""
        active = torch.zeros(num_classes, units, dtype=torch.int64, device=device)
        return cls(active, torch.zeros(num_classes, dtype=torch.int64, device=device))

    @property
    def units(self) -> int:
        """Number of units."""
        return self.active.shape[1]

    def grow(self, num_classes: int) -> None:
        """Makes place for further classes."""
        more = num_classes - len(self.samples)
        if more > 0:
            self.active = torch.nn.functional.pad(self.active, (0, 0, 0, more))
            self.samples = torch.nn.functional.pad(self.samples, (0, more))

    def add(self, other: _PartCounts) -> None:
        """Takes in what was counted of another batch."""
        self.grow(len(other.samples))
        other.grow(len(self.samples))
        self.active += other.active
        self.samples += other.samples
        self.states += other.states
        self.classes += other.classes

    def synchronise(self, keeps_states: bool) -> None:
        """Takes in what the other processes have counted."""
        torch.distributed.all_reduce(self.active)
        torch.distributed.all_reduce(self.samples)
        if keeps_states:
            nothing = torch.empty(0, -(-self.units // 8), dtype=torch.uint8, device=self.active.device)
            self.states = gather_all_tensors(torch.cat([nothing, *self.states]))
            self.classes = gather_all_tensors(torch.cat([nothing[:, 0].int(), *self.classes]))


class _Counts(dict[int, _PartCounts]):
    """What is kept of one layer, part by part: of most layers there is one."""

    @property
    def units(self) -> int:
        """Number of units of all parts."""
        return sum(part.units for part in self.values())

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Number of units of each part."""
        return tuple((number, part.units) for number, part in sorted(self.items()))

    def entropy(self, order: int) -> EntropyEstimate:
        """The layer's entropy."""
        parts = [part for _, part in sorted(self.items())]
        if order == 1:
            estimates = [exact_estimate(part.active, part.samples) for part in parts]
            value = sum(found.value * part.units for found, part in zip(estimates, parts, strict=True)) / self.units
            return estimates[0] if len(parts) == 1 else replace(estimates[0], value=value, number_of_sets=self.units)
        states, classes = torch.cat(parts[0].states), torch.cat(parts[0].classes)
        if len(parts) > 1:
            unpacked = [unpack_states(torch.cat(part.states), torch.bool)[:, : part.units] for part in parts]
            states = pack_states(torch.cat(unpacked, dim=1))
        return _joint_entropy_compute(states, classes, self.units, len(parts[0].samples), order)


class LayerEntropies:
    """Counts the states of the units of every layer by class, batch after batch, and makes their entropies of them.

    A potential is counted as it is met and let go: of a layer its counts remain, and its states, one bit each, where an
    order above 1 is asked for.

    Args:
        orders: orders of the entropies.
        unit: what one neuron is: ``"element"`` or ``"channel"``.
        num_classes: number of classes; None takes it from the output layer.
        max_bytes: the memory that the counts of all layers may take; None for no limit.

    Example:
        >>> entropies = LayerEntropies(orders=(1,), unit="element", num_classes=2)
        >>> entropies.start_batch(torch.tensor([0, 0, 1, 1]))
        >>> entropies.add("fc", torch.tensor([[1.0], [-1.0], [1.0], [1.0]]), unit_dim=1)
        >>> entropies.end_batch(not_hidden=(), output_sizes=set())
        >>> entropies.compute()[1]["fc"].value
        1.0
    """

    def __init__(
        self, orders: Sequence[int], unit: Unit, num_classes: int | None = None, max_bytes: int | None = None
    ) -> None:
        self._orders = tuple(orders)
        self._unit: Unit = unit
        self._given_classes = num_classes
        self._max_bytes = max_bytes
        self._keeps_states = any(order > 1 for order in self._orders)
        self.reset()

    def reset(self) -> None:
        """Forgets every batch."""
        self._num_classes = self._given_classes
        self._target: Tensor | None = None
        self._highest = 0  # class label of the current batch
        self._layers: dict[str, _Counts] = {}
        self._batch: list[tuple[object, str, object, _PartCounts]] = []  # counts of the current batch
        self._not_hidden: set[str] = set()
        self.left_out: dict[str, str] = {}  # layers that cannot be counted, and why
        self.problem: str | None = None  # that keeps everything from being counted
        self.is_error = False  # whether the problem is a contradiction in what was asked for

    @property
    def is_counting(self) -> bool:
        """Whether a batch has been started and not ended."""
        return self._target is not None

    def start_batch(self, target: Tensor) -> None:
        """Takes the class labels ``[batch]`` of the batch that is about to be evaluated."""
        if self.problem is not None:
            return
        self._target = target
        lowest, self._highest = (int(bound) for bound in target.aminmax()) if len(target) else (0, 0)
        if lowest < 0:
            self.give_up(f"a class label is {lowest}, where 0 is the lowest allowed")
        self._check_highest()

    def add(self, layer: str, z: Tensor, unit_dim: int, key: object = None, evaluation: object = None) -> None:
        """Counts a layer's potentials ``[batch, …]`` of the current batch.

        Args:
            layer: name of the layer.
            z: the potentials.
            unit_dim: the dimension of the channels.
            key: what :meth:`discard` knows these counts by.
            evaluation: the same for all parts of one passage, whose units are further ones; None for a passage of its
                own, whose samples are.
        """
        if self._target is None or layer in self.left_out or layer in self._not_hidden:
            return
        if len(z) != len(self._target):
            self._leave_out(layer, f"its potentials {[*z.shape]} do not go with {len(self._target)} class labels")
            return
        target = self._target.to(z.device)
        num_classes = self._num_classes or self._highest + 1
        units = count_units(z, self._unit, unit_dim)
        if layer not in self._layers and not self._has_place_for(num_classes, units):
            return
        counts = _PartCounts.empty(num_classes, units, z.device)
        _add_counts(counts.active, counts.samples, z, target, self._unit, unit_dim)
        if self._keeps_states:
            states, classes = _joint_entropy_update(z, target, self._unit, unit_dim)
            counts.states.append(states)
            counts.classes.append(classes)
        self._batch.append((key, layer, evaluation, counts))

    def discard(self, key: object) -> None:
        """Forgets what was counted under a key in the current batch."""
        self._batch = [entry for entry in self._batch if entry[0] is not key]

    def end_batch(self, not_hidden: Iterable[str], output_sizes: set[int]) -> None:
        """Ends the current batch.

        Args:
            not_hidden: layers that turned out to be none of the network's hidden layers.
            output_sizes: numbers of units of the output layers.
        """
        if self._target is None:
            return
        self._target = None
        batch, self._batch = self._batch, []
        parts: dict[tuple[str, int], int] = {}
        for _, layer, evaluation, counts in batch:
            if layer not in self.left_out:
                key = layer, id(evaluation)
                part = 0 if evaluation is None else parts.get(key, 0)
                parts[key] = part + 1
                self._commit(layer, part, counts)
        for layer in not_hidden:
            self._not_hidden.add(layer)
            self._layers.pop(layer, None)
        if self._num_classes is None:
            if len(output_sizes) != 1:
                found = " and ".join(map(str, sorted(output_sizes))) or "no"
                self.give_up(
                    f"the number of classes is not known, for the output layers have {found} units: give it as"
                    " `num_classes`"
                )
                return
            self._num_classes = max(2, *output_sizes)  # one logit decides between two classes
            self._check_highest()
            self._has_place_for(self._num_classes, 0)

    def _commit(self, layer: str, part: int, counts: _PartCounts) -> None:
        parts = self._layers.setdefault(layer, _Counts())
        if part not in parts:
            parts[part] = counts
        elif parts[part].units != counts.units:
            self._leave_out(layer, _differing(parts[part].units, counts.units))
        else:
            parts[part].add(counts)

    def give_up(self, problem: str, is_error: bool = False) -> None:
        """Counts no further and forgets what was counted."""
        self.problem, self.is_error = problem, is_error
        self._target = None
        self._layers.clear()
        self._batch.clear()

    def smaller_than(self, order: int) -> list[str]:
        """The layers that have fewer units than a set of this order, and no entropy of it."""
        return [layer for layer, counts in self._layers.items() if counts.units < order]

    def compute(self) -> dict[int, dict[str, EntropyEstimate]]:
        """For each order the entropy of every layer with as many units."""
        for counts in self._layers.values():
            for part in counts.values():
                part.grow(self._num_classes or 0)
        return {
            order: {layer: counts.entropy(order) for layer, counts in self._layers.items() if counts.units >= order}
            for order in self._orders
        }

    def empty_classes(self) -> list[int]:
        """The classes without samples, after :meth:`compute`."""
        layer = next(iter(self._layers.values()), None)
        if layer is None:
            return []
        empty: list[int] = (next(iter(layer.values())).samples == 0).nonzero().flatten().tolist()
        return empty

    def _check_highest(self) -> None:
        if self._num_classes is not None and self._highest >= self._num_classes:
            self.give_up(f"a class label is {self._highest}, where {self._num_classes - 1} is the highest allowed")

    def _has_place_for(self, num_classes: int, units: int) -> bool:
        size = 8 * num_classes * (units + sum(counts.units for counts in self._layers.values()))
        if self._max_bytes is None or size <= self._max_bytes:
            return True
        self.give_up(
            f"the counts of {num_classes} classes would take more than {self._max_bytes / 2**20:.0f} MiB:"
            ' entropy_unit="channel" takes channels for units'
        )
        return False

    def _leave_out(self, layer: str, reason: str) -> None:
        self.left_out[layer] = reason
        self._layers.pop(layer, None)

    # --- several processes -----------------------------------------------------------------------------------------

    def synchronise(self, device: torch.device) -> None:
        """Takes in the batches of all processes, each of which has to call this.

        Args:
            device: the device of this process, for layers that it has not seen.
        """
        units = {layer: counts.sizes for layer, counts in self._layers.items()}
        own = _Seen(self.problem, self.is_error, self._num_classes, units, self.left_out)
        processes: list[_Seen] = [own] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(processes, own)
        for process in sorted(processes, key=lambda process: process.is_error, reverse=True):
            if process.problem is not None:
                self.give_up(process.problem, process.is_error)
                return
        self._num_classes = max((process.num_classes or 0 for process in processes), default=0)
        units = {}
        for process in processes:
            for layer, number in process.units.items():
                if units.setdefault(layer, number) != number:
                    self._leave_out(layer, _differing(_total(units[layer]), _total(number)))
        for process in processes:
            for layer, reason in process.left_out.items():
                self._leave_out(layer, reason)
        self._layers = {
            layer: self._layers.get(layer)
            or _Counts((part, _PartCounts.empty(self._num_classes, number, device)) for part, number in sizes)
            for layer, sizes in units.items()
            if layer not in self.left_out
        }
        for counts in self._layers.values():
            for part in counts.values():
                part.grow(self._num_classes)
                part.synchronise(keeps_states=self._keeps_states)


class _Seen(NamedTuple):
    """What a process tells the others before they add up their counts."""

    problem: str | None
    is_error: bool
    num_classes: int | None
    units: dict[str, tuple[tuple[int, int], ...]]
    left_out: dict[str, str]


def _total(sizes: Iterable[tuple[int, int]]) -> int:
    return sum(units for _, units in sizes)


def _differing(first: int, second: int) -> str:
    return (
        f"it has {first} units in one batch and {second} in another;"
        ' entropy_unit="channel" takes its channels for units'
    )
