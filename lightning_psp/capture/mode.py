"""Watching a forward pass: every call of a nonlinearity, the potential that enters it, and its layer's name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_psp.capture.checkpoints import Checkpoints, in_backward
from lightning_psp.capture.frames import Frame, Frames, Kind
from lightning_psp.capture.functions import MASKING, Role, TorchFunction, name_of, overwriting, roles
from lightning_psp.capture.fused_calls import FusedCalls
from lightning_psp.capture.graph import edges_below
from lightning_psp.capture.in_place import overwrite_view, replace_memory
from lightning_psp.capture.kinds import is_of_another_kind
from lightning_psp.capture.ledger import Ledger
from lightning_psp.capture.losses import LossCalls
from lightning_psp.capture.module_calls import has_one_listener, told_of_module_calls
from lightning_psp.capture.nonlinearities import Nonlinearities
from lightning_psp.capture.origin import GATED, Keepable, Kept, Potential, tensors_in
from lightning_psp.capture.origins import Origins
from lightning_psp.capture.outputs import Call, OutputFinder
from lightning_psp.capture.pointwise import Pointwise
from lightning_psp.capture.provenance import Handler, Provenance
from lightning_psp.capture.selection import LayerSelection
from lightning_psp.capture.settlement import Settlement
from lightning_psp.capture.shadow import Graph
from lightning_psp.capture.witness import Witness, is_suspicious
from lightning_psp.capture.written_activations import WrittenActivations
from lightning_psp.compilation.runs import announce_graph, told_of_graphs
from lightning_psp.functional.penalty import Reduction

Other = TypeVar("Other", bound=Keepable)

_is_traced = torch.compiler.is_dynamo_compiling


class Capture(TorchFunctionMode, Generic[Kept]):
    """While entered, sees the potentials of a network; leaves nothing on its modules.

    Args:
        root: the network; layers are named relative to it.
        nonlinearities: the functions and module classes to react to.
        selection: the layers for which `keep` is called.
        keep: called with each potential, before its nonlinearity runs, as `keep(z, potential, in_place)`;
            what it returns is stored in the potential.
        tracks_units: whether `unit_dim` of the potentials is needed.
        takes_foreign: whether parameters that are none of the network's make layers, too.
        reduction: reduction of a penalty whose gradient compiled functions are to add; None if they are to give the
            potentials themselves.
    """

    def __init__(
        self,
        root: nn.Module,
        nonlinearities: Nonlinearities,
        selection: LayerSelection,
        keep: Callable[[Tensor, Potential[Kept], bool], Kept],
        tracks_units: bool,
        takes_foreign: bool,
        reduction: Reduction | None,
    ) -> None:
        super().__init__()
        self.on_backward: Callable[[Tensor], None] | None = None  # called before a backward pass inside the watch
        self.on_outputs: Callable[[], None] | None = None  # called when the output layer of a call is known
        self.message = ""  # of what could not be seen, when the watch has ended
        self.redirected = False  # whether the first call of root stands for a step of training, not for the network
        self.penalises = False  # whether potentials are to lie on the path to a loss where they have no other use
        self.root = root
        self.nonlinearities = nonlinearities
        self.set_reduction(reduction)
        self._takes_foreign = takes_foreign
        self.left_out: dict[str, None] = {}  # where complex, sparse and nested tensors enter nonlinearities
        self.suppressed = 0
        self._is_suspended = False
        self._scope = ExitStack()
        self.frames = Frames(root, nonlinearities.module_classes)
        self.origins = Origins(self.frames.name_of_parameter, takes_foreign)
        self.graph = Graph(self.origins)
        self.outputs: OutputFinder[Kept] = OutputFinder()
        self.losses = LossCalls(self)
        self.checkpoints = Checkpoints({**dict.fromkeys(self.losses.handlers(nonlinearities)), **nonlinearities.hidden})
        self.ledger = Ledger(
            self.origins, self.frames, self.checkpoints, selection, keep, lambda: len(self.outputs.calls)
        )
        self.settlement = Settlement(self.ledger, self.outputs, self.frames, self.origins, self.graph)
        self.fused_calls = FusedCalls(self)
        self.witness = Witness()
        self._written = WrittenActivations(self.ledger, self.frames, self.origins, self.graph)
        self.provenance = Provenance(self.origins, tracks_units)
        self._pointwise = Pointwise(self.origins, tracks_units)
        self._roles = {**overwriting(), **roles()}
        self._handlers = self._make_handlers()
        self._start()

    def _make_handlers(self) -> dict[TorchFunction, Handler]:
        known = self.nonlinearities
        by_role = {**self.provenance.handlers, Role.ARITHMETIC: self._compute, Role.POINTWISE: self._compute}
        by_role[Role.WEIGHING] = self._weigh
        handlers: dict[TorchFunction, Handler] = {function: by_role[role] for function, role in roles().items()}
        handlers.update(dict.fromkeys(overwriting(), self._overwrite))
        handlers.update({Tensor.backward: self._backward, torch.autograd.grad: self._differentiate})
        handlers.update(self.losses.handlers(known))
        handlers.update(self.fused_calls.handlers(known))
        handlers.update(dict.fromkeys(known.hidden, self._activation))
        return handlers

    # --- scope -------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.origins.clear()
        self.frames.start()
        self.suppressed = 0
        self.outputs.start()
        self.losses.start()
        self.ledger.start()
        self.settlement.start()
        self.witness.start()

    def __enter__(self) -> Capture[Kept]:
        """Starts a new watch."""
        self._start()
        self.settlement.revises = self.on_outputs is not None
        self.ledger.skips_without_grad = torch.is_grad_enabled()
        with ExitStack() as stack:
            stack.enter_context(told_of_module_calls(self, self.frames.modules()))
            stack.enter_context(told_of_graphs(self))
            stack.callback(self.checkpoints.uninstall)
            self.checkpoints.install()
            super().__enter__()  # type: ignore[no-untyped-call]
            self._scope = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the watch; the potentials seen stay in `potentials`."""
        try:
            super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        finally:
            self._scope.close()
            self.frames.start()
        if error is None and self.on_outputs is not None:
            self.settlement.settle(self.outputs.losses())
            self.on_outputs()
            self.message = self.unseen_message()
        self.origins.clear()
        self.outputs.start()
        self.ledger.outside = []

    def close(self) -> None:
        """Lets go of everything, for good: nothing waits for cycles of references to be collected."""
        self.ledger.forget()
        vars(self).clear()

    def __torch_function__(
        self, func: TorchFunction, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch in place of every torch function."""
        if _is_traced():
            return announce_graph(self._compilation_key, func, args, kwargs or {})
        if self._is_suspended or in_backward():
            return func(*args, **(kwargs or {}))
        kwargs = kwargs or {}
        has_shadow = not self.ledger.skips_without_grad  # `torch.distributions` enables gradient now and then
        if has_shadow:
            self.graph.start_call(getattr(func, "__name__", ""), (args, kwargs))
        handler = self._handlers.get(func)
        if handler is None:
            result = func(*args, **kwargs)
            self.provenance.note_other(args, result)
        elif self.checkpoints.regions:
            with self.checkpoints.call(func, args[0] if args else kwargs.get("input")):
                result = handler(func, args, kwargs)
        else:
            result = handler(func, args, kwargs)
        if has_shadow:
            self.graph.end_call(result)
        if not self.ledger.in_call and isinstance(result, Tensor) and result.ndim == 0 and self.ledger.counts():
            self.outputs.note_scalar(result, self.graph.edge(result))
        return result

    # --- modules -----------------------------------------------------------------------------------------------

    def enter_module(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Notes that the forward of a module starts."""
        if self._is_suspended or in_backward():
            return
        frame = self.frames.frame_of(module)
        known = frame.known
        if self.redirected and known.path == "":
            self.redirected = False
            frame.known = known._replace(path=None)
        elif not self.ledger.in_call and known.is_network:
            self.ledger.in_call = frame.starts_call = True
        if known.kind is Kind.PARAMETRIZATION:
            self.suppressed += 1
        elif known.kind is Kind.NAMED:
            frame.potential = self._enter_named_activation(module, frame, inputs)
            self.suppressed += 1
        elif known.kind is Kind.CANDIDATE and not self.suppressed:
            self._written.enter(frame, inputs)
        self.frames.running.append(frame)

    def _enter_named_activation(
        self, module: nn.Module, frame: Frame, inputs: tuple[Any, ...]
    ) -> Potential[Kept] | None:
        name = frame.path or type(module).__name__.lower()
        if not inputs:
            raise TypeError(f"Expected the input of activation {name!r} to be passed by position.")
        if self.suppressed or not self.ledger.is_potential(inputs[0]):
            return None
        in_place = bool(getattr(module, "inplace", False))
        return self.ledger.meet(inputs[0], type(module).__name__.lower(), in_place, frame)

    def leave_module(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Notes what the forward of a module returned."""
        if self._is_suspended or in_backward():
            return
        if not self.frames.running or self.frames.running[-1].module is not module:
            return  # entered before the watch began
        frame = self.frames.running.pop()
        kind = frame.known.kind
        if kind is Kind.PARAMETRIZATION or kind is Kind.NAMED:
            self.suppressed -= 1
        if frame.potential is not None and isinstance(output, Tensor):
            frame.potential.results.append(self.graph.edge(output))
            assert frame.potential.origin is not None
            self.origins.record_result(output, frame.potential.origin, frame.potential)
        self.witness.note_module(output, frame.path)
        is_activation = kind is Kind.NAMED or kind is Kind.ACTIVATION
        if frame.given is not None:
            is_activation = self._written.leave(frame, output)
        if frame.path is None:
            return
        if frame.starts_call:
            self._end_call(frame, output)
        elif frame.known.has_weights and not is_activation and not self.frames.is_wrapped(frame):
            tensors = (output,) if isinstance(output, Tensor) else tensors_in(output)
            self.origins.record_module(frame.path, frame, tensors)

    def _end_call(self, frame: Frame, output: Any) -> None:
        self.ledger.in_call = False
        assert frame.path is not None
        tensors = [tensor for tensor in tensors_in(output) if tensor.dtype.is_floating_point]
        if self.ledger.counts():  # else a teacher
            found = [self.settlement.target(tensor, frame.path) for tensor in tensors]
            is_trained = any(parameter.requires_grad for parameter in frame.module.parameters())
            edges = [edge for tensor in tensors if (edge := self.graph.edge(tensor))[0] is not None]
            self.outputs.calls.append(Call([target for target in found if target is not None], edges, is_trained))
        self.losses.end_call()
        if frame.known.has_weights:
            self.origins.record_module(frame.path, frame, tensors)
        for tensor in tensors:
            if tensor.ndim == 0 and self.ledger.counts():
                self.outputs.note_scalar(tensor, self.graph.edge(tensor))
        if frame.path == "" and self.on_outputs is not None:
            self.settlement.settle(self.outputs.losses())
            self.on_outputs()

    # --- compiled functions ----------------------------------------------------------------------------------------

    def set_reduction(self, reduction: Reduction | None) -> None:
        """Says what compiled functions are to give from now on; see the argument of the class."""
        self.reduction = reduction
        # Code compiled under one capture serves another one only if this is the same.
        self._compilation_key = f"{reduction} {self.nonlinearities.named}"

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """While open, nothing is seen."""
        before, self._is_suspended = self._is_suspended, True
        try:
            yield
        finally:
            self._is_suspended = before

    def duplicate(self, keep: Callable[[Tensor, Potential[Other], bool], Other]) -> Capture[Other]:
        """A capture with the same rules that chooses every layer."""
        return Capture(self.root, self.nonlinearities, LayerSelection(), keep, True, self._takes_foreign, None)

    def resume_in(self, other: Capture[Any]) -> None:
        """Takes up the place in the network where another capture is."""
        self.frames.start(other.frames.running)
        self.ledger.in_call = other.ledger.in_call

    # --- functions ---------------------------------------------------------------------------------------------

    def _compute(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        role = self._roles[func]
        assert role is not None
        join, note = self._pointwise.compute(func, role, args, kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            argument = self.origins.argument(args)
            note(result)
            if argument is not None and self.ledger.in_call and is_suspicious(func) and result.grad_fn is not None:
                place, edge = self.frames.host(name_of(func)), self.graph.edge(result)
                self.witness.note_suspect(func, place, argument, self.origins.of(result), edge)
            if join is not None and not self.suppressed:
                self._written.close(join, result, name_of(func))
        else:
            self.provenance.note_other(args, result)
        return result

    def _overwrite(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        join, note = self._pointwise.overwrite(self._roles[func], func, args, kwargs)
        label = name_of(func)
        overwritten = self.origins.find(args[0]) if args else None
        if overwritten is not None and not self.suppressed and self._written.overwrites_potential(overwritten, join):
            self.ledger.meet(args[0], label, in_place=True)
        elif overwritten is not None:
            self.settlement.save_overwritten(overwritten, args[0], func in MASKING)
        result = func(*args, **kwargs)
        written = args[0] if result is None and args else result  # of an assignment to a part
        if isinstance(written, Tensor):
            note(written)
            if join is not None and not self.suppressed:
                self._written.close(join, written, label)
        return result

    def unseen_message(self) -> str:
        """What to tell of what could not be seen; empty if nothing is to be told."""
        lacks_output = self.settlement.lacks_output and not self.fused_calls.left_out
        return self.witness.message(self.ledger.potentials, lacks_output)

    def _weigh(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = self.provenance.handlers[Role.WEIGHING](func, args, kwargs)
        origin = self.origins.find(result) if isinstance(result, Tensor) else None
        weights = [self.origins.find(value) for value in args if isinstance(value, Tensor)]
        has_weights = any(weight is not None and weight.weight is not None for weight in weights)
        if has_weights and origin is not None and origin.path is not None and self.ledger.counts():
            self.witness.weights.add(origin.path)
            if not self.ledger.in_call:
                # A weight that is used outside of every module is a call of the network.
                edge = self.graph.edge(result)
                target = self.settlement.target_of(edge, result, origin.path, False)
                self.outputs.calls.append(Call([target], [edge], True))
        return result

    def _activation(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        z = args[0] if args else kwargs.get("input")
        if self.suppressed or z is None or not self.ledger.is_potential(z) or self.ledger.is_of_no_network(z):
            return self._follow(func, z, args, kwargs)
        activation = self.nonlinearities.hidden[func]
        in_place = activation.overwrites(args, kwargs)
        origin = self.origins.of(z)
        if origin.is_weight or origin.made_of == GATED:  # the latter is a state, such as that of an LSTM's cell
            result = func(*args, **kwargs)
            if origin.is_weight:
                self.origins.note_weight(result)
            else:
                self.origins.record_result(result, origin, None)
            return result
        if in_place and z.requires_grad and not origin.values.potentials:
            if z._is_view():
                return overwrite_view(self, func, z, args, kwargs)
            # Another capture keeps references to the tensors that would change places.
            is_held = not self.checkpoints.regions and has_one_listener()
            if is_held and args and self.origins.can_be_replaced(z):
                return replace_memory(self, func, args, kwargs)
        potential = self.ledger.meet(z, activation.label, in_place)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            potential.results.append(self.graph.edge(result))
            self.origins.record_result(result, origin, potential)
        return result

    def _follow(self, func: TorchFunction, z: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls a nonlinearity whose argument is no potential."""
        if isinstance(z, Tensor) and is_of_another_kind(z) and not self.suppressed and self.ledger.counts():
            self.left_out[self.frames.host(self.nonlinearities.hidden[func].label)] = None
        origin = self.origins.find(z)
        result = func(*args, **kwargs)
        if origin is None or not isinstance(result, Tensor):
            self.provenance.note_other((z,), result)
        else:
            self.origins.record_result(result, origin, None)
        return result

    def _backward(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.outputs.note_backward(self.graph.edge(args[0]))
        if self.on_backward is not None:
            self.on_backward(args[0])
        return func(*args, **kwargs)

    def _differentiate(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        gradients = func(*args, **kwargs)
        if any(gradient.requires_grad for gradient in tensors_in(gradients)):
            # A loss made of them depends on potentials that it may not reach through their nonlinearity's result.
            for differentiated in tensors_in(args[0] if args else kwargs["outputs"]):
                edges = edges_below((differentiated.grad_fn, differentiated.output_nr))
                for potential in self.ledger.potentials:
                    potential.is_differentiated |= not edges.isdisjoint(potential.results)
        return gradients
