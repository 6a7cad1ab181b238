"""Calls of modules: where a call of the network begins and ends, and what modules make of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic

import torch
from torch import Tensor, nn

from lightning_psp.capture.affine_modules import unit_dim_of
from lightning_psp.capture.checkpoints import Checkpoints
from lightning_psp.capture.frames import Frame, Frames, Kind
from lightning_psp.capture.ledger import Ledger
from lightning_psp.capture.loss_calls import LossCalls
from lightning_psp.capture.origin import Kept, Potential, tensors_in
from lightning_psp.capture.origins import Origins
from lightning_psp.capture.outputs import Call, OutputFinder
from lightning_psp.capture.settlement import Settlement
from lightning_psp.capture.shadow import Graph
from lightning_psp.capture.witness import Witness
from lightning_psp.capture.written_activations import WrittenActivations
from lightning_psp.torch_private.autograd import in_backward


def has_trained_parameter(network: nn.Module) -> bool:
    """Whether a network has a parameter that asks for a gradient."""
    return any(parameter.requires_grad for parameter in network.parameters())


class NetworkCalls(Generic[Kept]):
    """Notes which modules are running, and what they return.

    Args:
        ledger: the potentials.
        frames: the running modules.
        origins: what is known of tensors.
        graph: the graph in which they are.
        outputs: is told of calls of the network.
        settlement: finds of which tensor a returned one stands for.
        losses: is told that a call of the network has ended.
        written: takes modules for activations that are written out.
        witness: is told of what modules returned.
        checkpoints: the checkpointed functions that are running.
        is_trained: whether a network that is called is one that is trained.
        leaves_affine_alone: whether nothing that torch's modules with weights call is a nonlinearity.
        step_aside: called before a module of torch runs inside which nothing is followed.
        step_back: called after it.
        on_end: called when a call of the whole network has ended.
    """

    def __init__(
        self,
        *,
        ledger: Ledger[Kept],
        frames: Frames,
        origins: Origins,
        graph: Graph,
        outputs: OutputFinder[Kept],
        settlement: Settlement[Kept],
        losses: LossCalls[Kept],
        written: WrittenActivations[Kept],
        witness: Witness,
        checkpoints: Checkpoints,
        is_trained: Callable[[nn.Module], bool],
        leaves_affine_alone: bool,
        step_aside: Callable[[], None],
        step_back: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self.is_suspended = False  # whether nothing is seen
        self.is_redirected = False  # whether the first call of the network stands for a step of training instead
        self.aside: Frame | None = None  # a running metric inside which nothing is followed
        self._ledger = ledger
        self._frames = frames
        self._origins = origins
        self._graph = graph
        self._outputs = outputs
        self._settlement = settlement
        self._losses = losses
        self._written = written
        self._witness = witness
        self._checkpoints = checkpoints
        self.is_trained = is_trained
        self.leaves_affine_alone = leaves_affine_alone
        self._step_aside = step_aside
        self._step_back = step_back
        self._on_end = on_end

    def enter_module(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Notes that the forward of a module starts."""
        if self.is_suspended or in_backward():
            return
        frame = self._frames.frame_of(module)
        frame.since = self._origins.number
        known = frame.known
        if self.aside is not None:
            self._frames.running.append(frame)
            return
        if known.is_of_metric and self._only_counts(module):
            self.aside = frame
            self._frames.begin_suppression()
            self._step_aside()
            self._frames.running.append(frame)
            return
        # With gradient, a network that a metric holds may be a part of the loss.
        is_left_out = known.is_of_metric and not torch.is_grad_enabled()
        if self.is_redirected and known.path == "":
            self.is_redirected = False
            frame.known = known._replace(path=None)
            frame.path = None
        elif not self._origins.in_call and known.is_network and not is_left_out:
            frame.starts_call = True
            self._ledger.begin_call()
        kind = known.kind
        if kind is Kind.PARAMETRIZATION or is_left_out:
            frame.suppresses = True
            self._frames.begin_suppression()
        elif kind is Kind.NAMED:
            frame.potential = self._enter_named_activation(module, frame, inputs)
            frame.suppresses = True
            self._frames.begin_suppression()
        elif kind is Kind.CANDIDATE:
            if not self._frames.suppressed:
                self._written.enter(frame, inputs)
        elif (
            kind is None
            and known.has_weights
            and self.leaves_affine_alone
            and known.path is not None
            and not self._checkpoints.regions
        ):
            frame.unit_dim = unit_dim_of(module, inputs)
            if frame.unit_dim is not None:
                self._step_aside()
        self._frames.running.append(frame)

    def _only_counts(self, module: nn.Module) -> bool:
        """Whether a module is a metric that can be no part of a loss, in a step that has one."""
        return self._ledger.skips_without_grad and getattr(module, "is_differentiable", None) is False

    def _enter_named_activation(
        self, module: nn.Module, frame: Frame, inputs: tuple[Any, ...]
    ) -> Potential[Kept] | None:
        name = frame.path or type(module).__name__.lower()
        if not inputs:
            raise TypeError(f"Expected the input of activation {name!r} to be passed by position.")
        if self._frames.suppressed or not self._ledger.is_potential(inputs[0]):
            return None
        in_place = bool(getattr(module, "inplace", False))
        return self._ledger.meet(inputs[0], type(module).__name__.lower(), in_place, frame)

    def leave_module(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Notes what the forward of a module returned."""
        if self.is_suspended or in_backward():
            return
        if not self._frames.running or self._frames.running[-1].module is not module:
            return  # entered before the watch began
        frame = self._frames.running.pop()
        if self.aside is not None:
            if frame is self.aside:
                self.aside = None
                self._frames.end_suppression()
                self._step_back()
            return
        known = frame.known
        kind, path = known.kind, frame.path
        if frame.unit_dim is not None:
            self._leave_affine(frame, frame.unit_dim, inputs[0], output)
            if not frame.starts_call:
                return
        if frame.suppresses:
            self._frames.end_suppression()
        if frame.potential is not None:
            assert frame.potential.origin is not None
            for tensor in tensors_in(output):  # several where it keeps a state
                frame.potential.results.append(self._graph.edge(tensor))
                self._origins.record_result(tensor, frame.potential.origin, frame.potential)
        if path and kind is not Kind.ACTIVATION and frame.unit_dim is None and isinstance(output, Tensor):
            self._witness.note_module(output, path)
        is_activation = kind is Kind.NAMED or kind is Kind.ACTIVATION
        if frame.given is not None:
            is_activation = self._written.leave(frame, output)
        if path is None:
            return
        if frame.starts_call:
            self._end_call(frame, inputs, output)
        elif known.has_weights and not is_activation and not self._frames.is_wrapped(frame):
            tensors = (output,) if isinstance(output, Tensor) else tensors_in(output)
            self._origins.record_module(path, frame, tensors, given=inputs, since=frame.since)

    def _leave_affine(self, frame: Frame, unit_dim: int, argument: Any, output: Any) -> None:
        self._step_back()
        if not isinstance(output, Tensor):  # after an exception
            return
        path = frame.path
        assert path is not None
        has_shadow = not self._ledger.skips_without_grad
        if has_shadow:
            self._graph.start_call(type(frame.module).__name__, argument)
        self._origins.record_affine(path, unit_dim, argument, output)
        if has_shadow:
            self._graph.end_call(output)
        if self._ledger.counts():
            self._witness.weights.add(path)

    def _end_call(self, frame: Frame, inputs: tuple[Any, ...], output: Any) -> None:
        assert frame.path is not None
        tensors = [tensor for tensor in tensors_in(output) if tensor.dtype.is_floating_point]
        self._ledger.end_call(tensors)
        if self._ledger.counts():  # else a teacher
            is_one = len(tensors) < 2
            found = [self._settlement.returned(it, frame.path, is_beside_others=not is_one) for it in tensors]
            edges = [edge for tensor in tensors if (edge := self._graph.edge(tensor))[0] is not None]
            targets = [target for target in found if target is not None]
            self._outputs.calls.append(Call(targets, edges, self.is_trained(frame.module)))
        self._losses.end_call()
        self._origins.end_call()
        if frame.known.has_weights:
            self._origins.record_module(frame.path, frame, tensors, given=inputs, since=frame.since)
        for tensor in tensors:
            if tensor.ndim == 0 and self._ledger.counts():
                self._outputs.note_scalar(tensor, self._graph.edge(tensor), self._frames.in_metric)
        if frame.path == "":
            self._on_end()
