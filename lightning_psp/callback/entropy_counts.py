"""Counting the states of units over the batches of an evaluation, into a metric for each layer and order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_psp.capture.origin import Potential
from lightning_psp.functional.entropy import ClassCounts, Membership, _count_states, class_membership
from lightning_psp.functional.states import _joint_entropy_update, pack_states, unpack_states
from lightning_psp.functional.validation import Unit, count_units
from lightning_psp.metrics import PSPEntropy


class Counted(NamedTuple):
    """What was counted of one passage of a layer, or of a part of it.

    Args:
        units: number of units.
        observations: number of observations of each unit.
        device: where they were counted.
        counts: how often each was on in each class; for order 1.
        states: the states packed in bits, and the classes of the observations; for orders above 1.
    """

    units: int
    observations: int
    device: torch.device
    counts: ClassCounts | None
    states: tuple[Tensor, Tensor] | None


class EntropyCounts:
    """Counts the states of the units of every layer by class, batch after batch.

    A potential is counted as it is met and let go. What becomes of a batch's counts shows at its end: what was no
    potential of its own is forgotten, the output layers are none of the hidden ones, and the parts of a passage are
    further units of one layer.

    Args:
        orders: orders of the entropies.
        unit: what one neuron is: ``"element"`` or ``"channel"``.
        num_classes: number of classes; None takes it from the output layer.
        max_bytes: the memory that the counts of all layers may take; None for no limit.

    Example:
        >>> counts = EntropyCounts(orders=(1,), unit="element", num_classes=2)
        >>> counts.start_batch(torch.tensor([0, 0, 1, 1]))
        >>> z = torch.tensor([[1.0], [-1.0], [1.0], [1.0]])
        >>> counts.add(Potential("fc", evaluation=object(), unit_dim=1, is_output=False), z)
        >>> counts.end_batch(not_hidden=(), output_sizes=set())
        >>> counts.metrics["fc"][1].compute()
        tensor(1., dtype=torch.float64)
    """

    def __init__(
        self, orders: Sequence[int], unit: Unit, num_classes: int | None = None, max_bytes: int | None = None
    ) -> None:
        self._orders = tuple(orders)
        self._unit: Unit = unit
        self._max_bytes = max_bytes
        self._num_classes = num_classes
        self._is_given = num_classes is not None
        self._target: Tensor | None = None  # of the current batch
        self._memberships: dict[torch.device, Membership] = {}  # the same, where potentials are
        self._highest = 0  # class label of the current batch
        self._batch: list[tuple[Potential[Any], Counted]] = []  # what was counted of the current batch
        self._not_hidden: set[str] = set()
        self._units: dict[str, int] = {}  # of each layer that is counted
        self.metrics: dict[str, dict[int, PSPEntropy]] = {}  # of each such layer by order
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
        self._memberships = {}
        lowest, self._highest = (int(bound) for bound in target.aminmax()) if len(target) else (0, 0)
        if lowest < 0:
            self.give_up(f"a class label is {lowest}, where 0 is the lowest allowed")
        self._check_highest()

    def add(self, potential: Potential[Any], z: Tensor) -> None:
        """Counts a layer's potentials ``[batch, …]`` of the current batch."""
        layer = potential.layer
        if self._target is None or layer in self.left_out or layer in self._not_hidden:
            return
        if len(z) != len(self._target):
            self._leave_out(layer, f"its potentials {[*z.shape]} do not go with {len(self._target)} class labels")
            return
        units = count_units(z, self._unit, potential.unit_dim)
        if layer not in self._units and not self._has_place_for(self._num_classes or self._highest + 1, units):
            return
        target = self._target.to(z.device)
        counts = states = None
        if 1 in self._orders:
            membership = self._memberships.get(z.device)
            if membership is None:
                membership = self._memberships[z.device] = class_membership(target)
            counts = _count_states(z, membership, self._unit, potential.unit_dim)
        if any(order > 1 for order in self._orders):
            states = _joint_entropy_update(z, target, self._unit, potential.unit_dim)
        self._batch.append((potential, Counted(units, z.numel() // units, z.device, counts, states)))

    def discard(self, potential: Potential[Any]) -> None:
        """Forgets what was counted of a potential in the current batch."""
        self._batch = [entry for entry in self._batch if entry[0] is not potential]

    def end_batch(self, not_hidden: Collection[str], output_sizes: Collection[int]) -> None:
        """Ends the current batch.

        Args:
            not_hidden: layers that turned out to be none of the network's hidden layers.
            output_sizes: numbers of units of the output layers.
        """
        if self._target is None:
            return
        batch, self._batch, self._target = self._batch, [], None
        if self._num_classes is None:
            if batch:  # else it had no samples, or the network was not called
                self._take_num_classes(output_sizes)
        elif output_sizes and not self._is_given and self._num_classes not in {max(2, size) for size in output_sizes}:
            self.give_up(
                f"the output layer tells of {self._num_classes} classes in one batch and of {max(2, *output_sizes)} in"
                " another: evaluate data sets with classes of their own one at a time"
            )
        for layer in not_hidden:
            self._not_hidden.add(layer)
            self._forget(layer)
        passages: dict[tuple[str, int], list[Counted]] = {}
        for potential, counted in batch:
            passages.setdefault((potential.layer, id(potential.evaluation)), []).append(counted)
        for (layer, _), parts in passages.items():
            if self.problem is None and layer not in self.left_out and layer not in self._not_hidden:
                self._commit(layer, parts)

    def _take_num_classes(self, output_sizes: Collection[int]) -> None:
        if len(output_sizes) == 1:
            self._num_classes = max(2, *output_sizes)  # one logit decides between two classes
            self._check_highest()
            return
        found = " and ".join(map(str, sorted(output_sizes))) or "no"
        self.give_up(
            f"the number of classes is not known, for the output layers have {found} units: give it as `num_classes`"
        )

    def _commit(self, layer: str, parts: list[Counted]) -> None:
        if any(part.observations != parts[0].observations for part in parts[1:]):
            self._leave_out(layer, 'its parts differ in their numbers of positions; entropy_unit="element" counts them')
            return
        counted = parts[0] if len(parts) == 1 else _joined(parts)
        if layer not in self._units:
            assert self._num_classes is not None
            if not self._has_place_for(self._num_classes, counted.units):
                return
            self._make(layer, counted.units, counted.device)
        elif self._units[layer] != counted.units:
            self._leave_out(layer, _differing(self._units[layer], counted.units))
            return
        for order, metric in self.metrics[layer].items():
            if order == 1:
                assert counted.counts is not None
                metric.add_counts(counted.units, counted.counts)
            else:
                assert counted.states is not None
                metric.add_states(counted.units, *counted.states)

    def _make(self, layer: str, units: int, device: torch.device) -> None:
        """Makes the metrics of a layer."""
        assert self._num_classes is not None
        self._units[layer] = units
        # Tensors that are made in inference mode could not be changed outside of it.
        with torch.inference_mode(False):
            self.metrics[layer] = {
                order: PSPEntropy(self._num_classes, order, self._unit, sync_on_compute=False).to(device)
                for order in self._orders
                if order <= units
            }

    def give_up(self, problem: str, is_error: bool = False) -> None:
        """Counts no further and forgets what was counted."""
        self.problem, self.is_error = problem, is_error
        self._target = None
        self._batch.clear()
        self._units.clear()
        self.metrics.clear()

    def smaller_than(self, order: int) -> list[str]:
        """The layers that have fewer units than a set of this order, and no entropy of it."""
        return [layer for layer, units in self._units.items() if units < order]

    def empty_classes(self) -> list[int]:
        """The classes without samples."""
        metric = next((metric for metrics in self.metrics.values() for metric in metrics.values()), None)
        if metric is None:
            return []
        empty: list[int] = (metric.class_sizes() == 0).nonzero().flatten().tolist()
        return empty

    def _check_highest(self) -> None:
        if self._num_classes is not None and self._highest >= self._num_classes:
            self.give_up(
                f"a class label is {self._highest}, where {self._num_classes - 1} is the highest allowed by"
                " `num_classes`, which by default is the number of logits"
            )

    def _has_place_for(self, num_classes: int, units: int) -> bool:
        size = 8 * num_classes * (units + sum(self._units.values()))
        if self._max_bytes is None or size <= self._max_bytes:
            return True
        self.give_up(
            f"the counts of {num_classes} classes would take more than {self._max_bytes / 2**20:.0f} MiB:"
            ' entropy_unit="channel" takes channels for units'
        )
        return False

    def _leave_out(self, layer: str, reason: str) -> None:
        self.left_out[layer] = reason
        self._forget(layer)

    def _forget(self, layer: str) -> None:
        self._units.pop(layer, None)
        self.metrics.pop(layer, None)

    # --- several processes -----------------------------------------------------------------------------------------

    def synchronise(self, device: torch.device) -> None:
        """Takes in the batches of all processes, each of which has to call this.

        Args:
            device: the device of this process, for layers that it has not seen.
        """
        own = _Seen(self.problem, self.is_error, self._num_classes, self._units, self.left_out)
        processes: list[_Seen] = [own] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(processes, own)
        for process in sorted(processes, key=lambda process: process.is_error, reverse=True):
            if process.problem is not None:
                self.give_up(process.problem, process.is_error)
                return
        numbers = sorted({process.num_classes for process in processes if process.num_classes is not None})
        if len(numbers) > 1:
            found = " and ".join(map(str, numbers))
            self.give_up(f"several processes find {found} classes: give their number as `num_classes`")
            return
        self._num_classes = next(iter(numbers), None)
        units: dict[str, int] = {}
        for process in processes:
            for layer, number in process.units.items():
                if units.setdefault(layer, number) != number:
                    self._leave_out(layer, _differing(units[layer], number))
        for process in processes:
            for layer, reason in process.left_out.items():
                self._leave_out(layer, reason)
        for layer in [layer for layer in units if layer not in self.left_out]:
            if layer not in self._units:
                self._make(layer, units[layer], device)
            # In one order in all processes.
            self._units[layer] = self._units.pop(layer)
            self.metrics[layer] = self.metrics.pop(layer)
            for metric in self.metrics[layer].values():
                metric.keep_synchronised()


class _Seen(NamedTuple):
    """What a process tells the others before they add up their counts."""

    problem: str | None
    is_error: bool
    num_classes: int | None
    units: dict[str, int]
    left_out: dict[str, str]


def _joined(parts: list[Counted]) -> Counted:
    """The counts of a passage, whose parts hold further units."""
    counts, states = None, None
    if parts[0].counts is not None:
        active = torch.cat([part.counts.active for part in parts if part.counts is not None], dim=1)
        counts = parts[0].counts._replace(active=active)
    if parts[0].states is not None:
        unpacked = [unpack_states(part.states[0], torch.bool)[:, : part.units] for part in parts if part.states]
        states = (pack_states(torch.cat(unpacked, dim=1)), parts[0].states[1])
    return parts[0]._replace(units=sum(part.units for part in parts), counts=counts, states=states)


def _differing(first: int, second: int) -> str:
    return (
        f"it has {first} units in one batch and {second} in another;"
        ' entropy_unit="channel" takes its channels for units'
    )
