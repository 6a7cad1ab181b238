"""The potentials that a watch has seen so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeGuard

import torch
from torch import Tensor, nn

from lightning_psp.capture.checkpoints import Checkpoints
from lightning_psp.capture.frames import Frame, Frames
from lightning_psp.capture.kinds import is_transformed
from lightning_psp.capture.origin import Kept, Potential, Source
from lightning_psp.capture.origins import Origins
from lightning_psp.capture.selection import LayerSelection


class Ledger(Generic[Kept]):
    """Takes tensors for potentials, gives them their layer, and lets go of what turns out to be none.

    Args:
        origins: what is known of tensors.
        frames: the running modules.
        checkpoints: the checkpointed functions that are running.
        selection: the layers for which `keep` is called.
        keep: called with each potential, before its nonlinearity runs, as `keep(z, potential, in_place)`;
            what it returns is stored in the potential.
        number_of_calls: gives the number of calls of the network that have ended.
        on_drop: called with what turns out to be no potential of its own.
    """

    def __init__(
        self,
        origins: Origins,
        frames: Frames,
        checkpoints: Checkpoints,
        selection: LayerSelection,
        keep: Callable[[Tensor, Potential[Kept], bool], Kept],
        number_of_calls: Callable[[], int],
        on_drop: Callable[[Potential[Kept]], None] | None,
    ) -> None:
        self.skips_without_grad = False  # whether calls without gradient are none of the watch's
        self.potentials: list[Potential[Kept]] = []
        self._selection = selection
        self._keep = keep
        self._origins = origins
        self._frames = frames
        self._checkpoints = checkpoints
        self._number_of_calls = number_of_calls
        self._on_drop = on_drop
        self.start()

    def start(self, in_call: bool = False) -> None:
        """Starts a new watch, while the network is running or not."""
        self.potentials = []
        self.outside: list[Potential[Kept]] = []  # of which only the losses tell whether they belong to these
        self._recurrent: set[str] = set()  # layers whose potentials are the gates inside recurrent kernels
        self.saw_empty_batch = False
        self.has_skipped = False  # whether something was not counted because it came without gradient
        self._has_uncounted_call = False  # of a teacher
        # Whether a call that counts returned what weights made and has no gradient, as a frozen network does.
        self._has_constant_result = False
        self._origins.in_call = in_call

    @property
    def in_call(self) -> bool:
        """Whether the network is running."""
        return self._origins.in_call

    def begin_call(self) -> None:
        """Notes that the network starts to run."""
        self._origins.in_call = True

    def end_call(self, results: Iterable[Tensor]) -> None:
        """Notes that the network has run, and what it returned."""
        self._origins.in_call = False
        if not self.counts():
            self._has_uncounted_call = True
        elif any(not z.requires_grad and (o := self._origins.find(z)) is not None and o.is_made for z in results):
            self._has_constant_result = True

    def selects(self, layer: str) -> bool:
        """Whether the selection has this layer."""
        return self._selection.selects(layer)

    def forget(self) -> None:
        """Lets go of all potentials."""
        for potential in self.potentials:
            if potential.kept is not None:
                potential.kept.release()
            potential.kept = potential.origin = None  # which know the potential, too
        self.potentials = []

    def is_potential(self, z: Any) -> TypeGuard[Tensor]:
        """Whether this tensor counts as a potential where it is met."""
        if not isinstance(z, Tensor):
            return False
        if z.numel() == 0:
            self.saw_empty_batch = True
            return False
        return (
            z.ndim > 0
            and z.is_floating_point()
            and z.layout is torch.strided
            and not z.is_nested
            and not is_transformed(z)
            and (type(z) is Tensor or not isinstance(z, nn.Parameter))
            and self.counts()
        )

    def counts(self) -> bool:
        """False for a call without gradient inside a watch that began with it."""
        if torch.is_grad_enabled() or not self.skips_without_grad:
            return True
        self.has_skipped = True
        return False

    def is_of_no_network(self, z: Tensor) -> bool:
        """Whether a tensor outside of every call of the network comes from no weights, or from a teacher's."""
        if self.in_call:
            return False
        origin = self._origins.find(z)
        if origin is None or not origin.is_made:
            return True
        return self._has_uncounted_call and not (self._has_constant_result or z.requires_grad)

    def meet(self, z: Tensor, label: str, in_place: bool, activation: Frame | None = None) -> Potential[Kept]:
        """The potential that a tensor is where a nonlinearity reads it: a new one, unless another one has read it."""
        known: list[Potential[Kept]] = self._origins.of(z).values.potentials
        if not known:
            return self.add(z, label, in_place, is_output=False, activation=activation)
        known[0].enters_nonlinearity = True
        if in_place and known[0].kept is not None:
            known[0].kept.preserve(z)
        return known[0]

    def add(
        self,
        z: Tensor,
        label: str,
        in_place: bool,
        is_output: bool,
        activation: Frame | None = None,
        in_call: bool = False,
    ) -> Potential[Kept]:
        """Takes a tensor for a potential.

        Args:
            z: the tensor.
            label: names its layer where no weights do.
            in_place: whether its nonlinearity is about to overwrite it.
            is_output: whether it is known to be the output layer's.
            activation: a module that is a nonlinearity, and names the layer, too.
            in_call: whether the network was running where the tensor arose, if it is not running now.
        """
        origin = self._origins.of(z)
        if is_output and origin.giver is not None and (origin.source is None or origin.source.name is None):
            origin.source = Source(origin.giver)  # whatever the loss does with it
        if origin.source is None:
            origin.source = Source(None)
        if origin.source.name is None:
            self._frames.name_place(origin.source, label, activation)
        layer = origin.source.name or "output"
        # What a recurrent layer returned is none of its gates' potentials, and a module may be called so.
        if layer in self._recurrent or (not origin.source.name and self._frames.module_at(layer) is not None):
            layer = f"{layer}:1"
        potential: Potential[Kept] = Potential(layer, origin.source.evaluation, origin.unit_dim, is_output)
        potential.origin, potential.entering = origin, z.grad_fn
        potential.units = z.shape[origin.unit_dim] if z.ndim > 1 else 1
        potential.label = label
        potential.is_of_metric = self._frames.in_metric
        if origin.measured is not None:
            potential.measured = origin.measured
            potential.results.extend(origin.measured.results)
        if self._selection.selects(potential.layer, is_output):
            if self._checkpoints.regions:
                with self._checkpoints.unseen():
                    potential.kept = self._keep(z, potential, in_place)
            else:
                potential.kept = self._keep(z, potential, in_place)
        origin.values.potentials.append(potential)
        self.potentials.append(potential)
        if not (self.in_call or in_call or is_output):
            potential.number_of_calls = self._number_of_calls()
            self.outside.append(potential)
        return potential

    def expect_gates(self, layers: Sequence[str]) -> list[Potential[Kept]]:
        """Potentials for the gates of these layers, which a recurrent kernel is about to compute."""
        evaluation = object()
        self._recurrent.update(layers)
        return [Potential(layer, evaluation, -1, is_output=False) for layer in layers]

    def take_gates(self, expected: Sequence[Potential[Kept]], gates: Sequence[Tensor | None]) -> None:
        """Takes what :meth:`expect_gates` gave for potentials, each with its values where these were computed."""
        for potential, z in zip(expected, gates, strict=False):
            if z is not None:
                potential.units = z.shape[-1]
                potential.kept = self._keep(z, potential, False)
        self.potentials.extend(expected)

    def set_aside(self, potential: Potential[Kept]) -> None:
        """Leaves out what may turn out to be a potential later."""
        self.potentials.remove(potential)

    def take_up(self, potentials: Iterable[Potential[Kept]]) -> None:
        """Counts potentials again that were set aside."""
        self.potentials.extend([potential for potential in potentials if potential not in self.potentials])

    def drop(self, potential: Potential[Kept]) -> None:
        """Lets go of what is no potential of its own."""
        if potential in self.potentials:
            self.potentials.remove(potential)
        if potential in self.outside:
            self.outside.remove(potential)
        if potential.origin is not None and potential in potential.origin.values.potentials:
            potential.origin.values.potentials.remove(potential)
        if potential.kept is not None:
            potential.kept.release()
            potential.kept = None
        if self._on_drop is not None:
            self._on_drop(potential)
