"""Watching a forward pass: every call of a nonlinearity, the potential that enters it, and its layer's name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchmetrics import Metric, MetricCollection

from lightning_psp.capture.checkpoints import Checkpoints, in_backward
from lightning_psp.capture.frames import Frame, Frames, Kind, Known, take_back
from lightning_psp.capture.functions import MASKING, Role, TorchFunction, overwriting, roles
from lightning_psp.capture.fused_calls import FusedCalls
from lightning_psp.capture.in_place import overwrite_view, replace_memory
from lightning_psp.capture.kinds import is_of_another_kind, is_transformed
from lightning_psp.capture.losses import LossCalls
from lightning_psp.capture.module_calls import has_one_listener, told_of_module_calls
from lightning_psp.capture.nonlinearities import Nonlinearities
from lightning_psp.capture.origin import GATED, LINEAR, Keepable, Kept, Origin, Potential, Source, arrange, tensors_in
from lightning_psp.capture.origins import Origins, shape_of
from lightning_psp.capture.outputs import Call, OutputFinder, Target
from lightning_psp.capture.pointwise import Join, Pointwise
from lightning_psp.capture.provenance import Handler, Provenance
from lightning_psp.capture.recurrent import RECURRENT_MODULES
from lightning_psp.capture.shadow import ShadowNode, edge_of, note_call, start_call
from lightning_psp.capture.witness import OF_NORMS, SUSPICIOUS, Suspect, Witness
from lightning_psp.compilation.runs import announce_graph, told_of_graphs
from lightning_psp.gradient.graph import Edge, edges_below
from lightning_psp.messages import unseen_message
from lightning_psp.penalty import Reduction
from lightning_psp.selection import LayerSelection

Other = TypeVar("Other", bound=Keepable)

_is_traced = torch.compiler.is_dynamo_compiling

_NO_NETWORK = (Metric, MetricCollection)
_SIGMOIDS = ("sigmoid", "softplus", "logsigmoid")


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
        self.potentials: list[Potential[Kept]] = []
        self.on_backward: Callable[[Tensor], None] | None = None  # called before a backward pass inside the watch
        self.on_outputs: Callable[[], None] | None = None  # called when the output layer of a call is known
        self.on_drop: Callable[[Potential[Kept]], None] | None = None  # called with what turns out to be no potential
        self.message = ""  # of what could not be seen, when the watch has ended
        self.redirected = False  # whether the first call of root stands for a step of training, not for the network
        self.penalises = False  # whether potentials are to lie on the path to a loss where they have no other use
        self.root = root
        self.nonlinearities = nonlinearities
        self.set_reduction(reduction)
        self.selection = selection
        self.keep = keep
        self._takes_foreign = takes_foreign
        self.fused_calls = FusedCalls(self)
        self.left_out: dict[str, None] = {}  # where complex, sparse and nested tensors enter nonlinearities
        self.frames = Frames(root, nonlinearities.module_classes)
        self.origins = Origins(self.frames.name_of_parameter, takes_foreign)
        self.provenance = Provenance(self.origins, tracks_units)
        self.pointwise = Pointwise(self.origins, tracks_units)
        self._scope = ExitStack()
        self.skips_without_grad = False  # whether calls without gradient are none of the watch's
        self.suppressed = 0
        self._is_suspended = False
        self.outputs: OutputFinder[Kept] = OutputFinder()
        self.losses = LossCalls(self)
        self.witness = Witness()
        self.checkpoints = Checkpoints({**dict.fromkeys(self.losses.handlers(nonlinearities)), **nonlinearities.hidden})
        self._roles = {**overwriting(), **roles()}
        self._handlers = self._make_handlers()
        self._start()

    def _make_handlers(self) -> dict[TorchFunction, Handler]:
        known = self.nonlinearities
        by_role = {**self.provenance.handlers, Role.ARITHMETIC: self._pointwise, Role.POINTWISE: self._pointwise}
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
        self.potentials = []
        self.origins.clear()
        self.frames.start()
        self.suppressed = 0
        self.saw_empty_batch = False
        self.has_skipped = False  # whether something was not counted because it came without gradient
        self.in_call = self.origins.in_call = False  # whether the network is running
        self.number_of_calls = 0
        self._node: ShadowNode | None = None  # of the function that is running, where there is no gradient
        self._has_loss = self._has_recurrent_output = False
        self._overwritten: list[Potential[Kept]] = []  # returned by a network and then overwritten
        self._outside: list[Potential[Kept]] = []  # of which only the losses tell whether they belong to these
        self._settled: list[tuple[Potential[Kept], bool]] = []  # taken for output layers, and whether for this alone
        self.outputs.start()
        self.losses.start()
        self.witness.start()

    def __enter__(self) -> Capture[Kept]:
        """Starts a new watch."""
        self._start()
        self.skips_without_grad = torch.is_grad_enabled()
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
            self.settle(self.outputs.losses())
            self.on_outputs()
            self.message = self.unseen_message()
        self.origins.clear()
        self.outputs.start()
        self._outside = []
        self._settled = []

    def forget(self) -> None:
        """Lets go of all potentials."""
        for potential in self.potentials:
            if potential.kept is not None:
                potential.kept.release()
            potential.kept = potential.origin = None  # which know the potential, too
        self.potentials = []

    def close(self) -> None:
        """Lets go of everything, for good: nothing waits for cycles of references to be collected."""
        self.forget()
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
        has_shadow = not self.skips_without_grad  # `torch.distributions` enables gradient now and then
        if has_shadow:
            self._node = start_call(self.origins, getattr(func, "__name__", ""), (args, kwargs))
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
            note_call(self.origins, self._node, result)
            self._node = None
        if not self.in_call and isinstance(result, Tensor) and result.ndim == 0 and self.counts():
            edge = self.edge(result)
            if edge[0] is not None:
                self.outputs.note_scalar(result, edge)
        return result

    def edge(self, tensor: Tensor) -> Edge:
        """The edge that leads to a tensor in the graph, whether gradient is enabled or not."""
        found = edge_of(self.origins, tensor)
        return found if found[0] is not None or tensor.grad_fn is not None else (self._node, 0)

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
        elif not self.in_call and self._is_network(module, known):
            self.in_call = self.origins.in_call = frame.starts_call = True
            self.number_of_calls += 1
        if known.kind is Kind.PARAMETRIZATION:
            self.suppressed += 1
        elif known.kind is Kind.NAMED:
            frame.potential = self._enter_named_activation(module, frame, inputs)
            self.suppressed += 1
        elif known.kind is Kind.CANDIDATE and not self.suppressed:
            given = [value for value in inputs if isinstance(value, Tensor)]
            if len(given) == 1 and given[0].ndim > 0 and self.is_potential(given[0]):
                frame.given, frame.first = self.origins.of(given[0]), len(self.potentials)
        self.frames.running.append(frame)

    @staticmethod
    def _is_network(module: nn.Module, known: Known) -> bool:
        is_part = known.path is not None and (known.has_weights or known.path == "")
        return is_part and not isinstance(module, _NO_NETWORK)

    def _enter_named_activation(
        self, module: nn.Module, frame: Frame, inputs: tuple[Any, ...]
    ) -> Potential[Kept] | None:
        name = frame.path or type(module).__name__.lower()
        if not inputs:
            raise TypeError(f"Expected the input of activation {name!r} to be passed by position.")
        if self.suppressed or not self.is_potential(inputs[0]):
            return None
        in_place = bool(getattr(module, "inplace", False))
        return self._meet(inputs[0], type(module).__name__.lower(), in_place, frame)

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
            frame.potential.results.append(self.edge(output))
            assert frame.potential.origin is not None
            self.origins.record_result(output, frame.potential.origin, frame.potential)
        self.witness.note_module(output, frame.path)
        is_activation = kind is Kind.NAMED or kind is Kind.ACTIVATION
        if frame.given is not None:
            is_activation = self._close_candidate(frame, output)
        if frame.path is None:
            return
        if frame.starts_call:
            self._end_call(frame, output)
        elif frame.known.has_weights and not is_activation and not self._is_wrapped(frame):
            tensors = (output,) if isinstance(output, Tensor) else tensors_in(output)
            self.origins.record_module(frame.path, frame, tensors)

    def _is_wrapped(self, frame: Frame) -> bool:
        """Whether the module around it stands for the same one, such as that of `torch.compile`."""
        return bool(self.frames.running) and self.frames.running[-1].path == frame.path

    def _end_call(self, frame: Frame, output: Any) -> None:
        self.in_call = self.origins.in_call = False
        assert frame.path is not None
        tensors = [tensor for tensor in tensors_in(output) if tensor.dtype.is_floating_point]
        if self.counts():  # else a teacher
            targets = [target for tensor in tensors if (target := self.target(tensor, frame.path)) is not None]
            is_trained = any(parameter.requires_grad for parameter in frame.module.parameters())
            edges = [edge for tensor in tensors if (edge := self.edge(tensor))[0] is not None]
            self.outputs.calls.append(Call(targets, edges, is_trained))
        self.losses.end_call()
        if frame.known.has_weights:
            self.origins.record_module(frame.path, frame, tensors)
        for tensor in tensors:
            if tensor.ndim == 0 and self.edge(tensor)[0] is not None and self.counts():
                self.outputs.note_scalar(tensor, self.edge(tensor))
        if frame.path == "" and self.on_outputs is not None:
            self.settle(self.outputs.losses())
            self.on_outputs()

    def target(self, tensor: Tensor, path: str) -> Target[Kept] | None:
        """What a tensor that a network returned stands for, if it may be an output layer."""
        edge = self.edge(tensor)
        if tensor.ndim == 0 or edge[0] is None:
            return None
        origin = self.origins.of(tensor)
        if origin.is_weight:
            return None
        is_term = origin.path is None or origin.is_bent
        root = self.origins.root(origin)
        if root.potential is not None:
            return Target([edge], None, None, [root.potential], path)
        if root.entering is not None:
            return self._target(edge, self.origins.whole_of(root.entering), path, False)
        if root is not origin and root.values.potentials:
            return Target([edge], None, None, root.values.potentials[:1], path, is_term)
        whole = None if root.is_bent and root.whole is None else self.origins.whole(root)
        return self._target(edge, self.origins.whole_of(tensor) if whole is None else whole, path, is_term)

    def _target(self, edge: Edge, tensor: Tensor, path: str, may_be_term: bool) -> Target[Kept]:
        origin = self.origins.of(tensor)
        origin.is_returned = True
        return Target([edge], tensor, origin, [], path, may_be_term)

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
        self.in_call = other.in_call

    # --- functions ---------------------------------------------------------------------------------------------

    def _pointwise(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        role = self._roles[func]
        assert role is not None
        join, note = self.pointwise.compute(func, role, args, kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            argument = self.origins.argument(args)
            note(result)
            if argument is not None and self.in_call and (func in SUSPICIOUS or func in OF_NORMS):
                self._suspect(func, argument, result)
            if join is not None:
                self._close(join, result, getattr(func, "__name__", "").strip("_"))
        else:
            self.provenance.note_other(args, result)
        return result

    def _overwrite(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        join, note = self.pointwise.overwrite(self._roles[func], func, args, kwargs)
        label = getattr(func, "__name__", "").strip("_")
        overwritten = self.origins.find(args[0]) if args else None
        if overwritten is not None and self._is_of_activation(overwritten, join):
            self._meet(args[0], label, in_place=True)
        elif overwritten is not None and self._is_lost_output(overwritten, args[0], func in MASKING):
            self._overwritten.append(self.add(args[0], "output", True, is_output=True))
        result = func(*args, **kwargs)
        written = args[0] if result is None and args else result  # of an assignment to a part
        if isinstance(written, Tensor):
            note(written)
            if join is not None:
                self._close(join, written, label)
        return result

    def _is_lost_output(self, origin: Origin, tensor: Tensor, is_mask: bool) -> bool:
        """Whether overwriting a tensor overwrites what a network returned, or logits that a loss masks."""
        may_be = origin.is_returned or (is_mask and not self.in_call and origin.is_made)
        return may_be and not origin.values.potentials and self.is_potential(tensor)

    def _suspect(self, func: TorchFunction, argument: Origin, result: Tensor) -> None:
        name = getattr(func, "__name__", "").strip("_")
        name = {"rpow": "pow"}.get(name, name)
        if result.grad_fn is not None:
            is_of_norms, edge = func in OF_NORMS, self.edge(result)
            place, origin = self.frames.host(name), self.origins.of(result)
            self.witness.note_suspect(Suspect(name, place, argument, origin, is_of_norms, edge))

    def unseen_message(self) -> str:
        """What to tell of what could not be seen; empty if nothing is to be told."""
        outputs = [edge for potential in self.potentials if potential.is_output for edge in potential.results]
        has_more = any(potential.enters_nonlinearity for potential in self.potentials)
        has_output = any(potential.is_output for potential in self.potentials) or self._has_recurrent_output
        return unseen_message(
            self.witness.unseen(self.potentials, outputs),
            sees_output_alone=bool(self.potentials) and not has_more and len(self.witness.weights) > 1,
            lacks_output=bool(self.potentials) and self._has_loss and not has_output,
        )

    def _is_of_activation(self, origin: Origin, join: Join | None) -> bool:
        """Whether overwriting a tensor overwrites the potential of an activation that is written out."""
        frame = self.frames.running[-1] if self.frames.running else None
        is_candidates = frame is not None and frame.given is origin
        is_joined = join is not None and join.origin is origin
        tensor = origin.reference()
        return (is_candidates or is_joined) and not self.suppressed and self.is_potential(tensor)

    def _weigh(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = self.provenance.handlers[Role.WEIGHING](func, args, kwargs)
        origin = self.origins.find(result) if isinstance(result, Tensor) else None
        weights = [self.origins.find(value) for value in args if isinstance(value, Tensor)]
        has_weights = any(weight is not None and weight.weight is not None for weight in weights)
        if has_weights and origin is not None and origin.path is not None and self.counts():
            self.witness.weights.add(origin.path)
            if not self.in_call:
                # A weight that is used outside of every module is a call of the network.
                self.number_of_calls += 1
                edge = self.edge(result)
                self.outputs.calls.append(Call([self._target(edge, result, origin.path, False)], [edge], True))
        return result

    def _activation(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        z = args[0] if args else kwargs.get("input")
        activation = self.nonlinearities.hidden[func]
        if self.suppressed or not isinstance(z, Tensor) or not self.is_potential(z) or self._is_of_no_network(z):
            if isinstance(z, Tensor) and is_of_another_kind(z) and not self.suppressed and self.counts():
                self.left_out[self.frames.host(activation.label)] = None
            origin = self.origins.find(z)
            result = func(*args, **kwargs)
            if origin is None or not isinstance(result, Tensor):
                self.provenance.note_other((z,), result)
            else:
                self.origins.record_result(result, origin, None)
            return result
        origin = self.origins.of(z)
        if origin.is_weight:
            result = func(*args, **kwargs)
            self.origins.note_weight(result)
            return result
        in_place = activation.overwrites(args, kwargs)
        if origin.made_of == GATED:  # a state made by gates, such as an LSTM cell's
            result = func(*args, **kwargs)
            self.origins.record_result(result, origin, None)
            return result
        if in_place and z.requires_grad and not origin.values.potentials:
            if z._is_view():
                return overwrite_view(self, func, z, args, kwargs)
            # Another capture keeps references to the tensors that would change places.
            is_held = not self.checkpoints.regions and has_one_listener()
            if is_held and args and self.origins.can_be_replaced(z):
                return replace_memory(self, func, args, kwargs)
        potential = self._meet(z, activation.label, in_place)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            potential.results.append(self.edge(result))
            self.origins.record_result(result, origin, potential)
        return result

    def _backward(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.outputs.note_backward(self.edge(args[0]))
        if self.on_backward is not None:
            self.on_backward(args[0])
        return func(*args, **kwargs)

    def _differentiate(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        gradients = func(*args, **kwargs)
        if any(gradient.requires_grad for gradient in tensors_in(gradients)):
            # A loss made of them depends on potentials that it may not reach through their nonlinearity's result.
            for differentiated in tensors_in(args[0] if args else kwargs["outputs"]):
                edges = edges_below((differentiated.grad_fn, differentiated.output_nr))
                for potential in self.potentials:
                    potential.is_differentiated |= not edges.isdisjoint(potential.results)
        return gradients

    # --- activations that are written out --------------------------------------------------------------------------

    def _close(self, join: Join, result: Tensor, label: str) -> None:
        """Takes what was computed between two tensors for one activation, whose input is the first."""
        if self.suppressed:
            return
        inner = [potential for origin in join.between if origin._values for potential in origin.values.potentials]
        z = join.origin.reference()
        known = join.origin.values.potentials
        if not known and (z is None or not self.is_potential(z) or self._is_of_no_network(z)):
            return
        self._replace(inner, join.origin, z, result, inner[0].label if inner else label, None)

    def _close_candidate(self, frame: Frame, output: Any) -> bool:
        """Takes a module for an activation if what it returned follows value by value from what it was given."""
        given = frame.given
        assert given is not None
        z = given.reference()
        if not self._is_activation(given, output) or (z is None and not given.values.potentials):
            read = next((p for p in self.potentials[frame.first :] if p.origin is given), None)
            if read is not None and given.source is not None and given.source.path is None:
                self.frames.rename_inside(frame, given.source, read.label)
                read.layer = given.source.name or read.layer
            return False
        inner = [p for p in self.potentials[frame.first :] if p.origin is not None and p.origin is not given]
        label = frame.path or type(frame.module).__name__.lower()
        potential = self._replace(inner, given, z, output, label.rpartition(".")[2], frame)
        self.origins.record_result(output, given, potential)
        return True

    def _is_activation(self, given: Origin, output: Any) -> bool:
        """Whether a result follows from a tensor value by value, and not linearly."""
        if not isinstance(output, Tensor) or (shape_of(given) or output.shape) != output.shape:
            return False
        origin, way = self.origins.find(output), LINEAR
        while origin is not None and origin is not given:
            way = max(way, origin.step)
            origin = origin.parent
        return origin is given and way != LINEAR

    def _replace(
        self,
        inner: Sequence[Potential[Kept]],
        origin: Origin,
        z: Tensor | None,
        result: Tensor,
        label: str,
        activation: Frame | None,
    ) -> Potential[Kept]:
        known: list[Potential[Kept]] = origin.values.potentials
        if known:
            potential = known[0]
        else:
            for other in inner:
                self._forget_place(other)
            assert z is not None
            potential = self.add(z, label, False, is_output=False, activation=activation)
        potential.results.append(self.edge(result))
        for other in inner:
            if other is not potential:
                potential.results.extend(other.results)
                self._drop(other)
        return potential

    def _forget_place(self, potential: Potential[Kept]) -> None:
        source = None if potential.origin is None else potential.origin.source
        if source is not None and source.path is None:
            take_back(source)

    def _drop(self, potential: Potential[Kept]) -> None:
        if potential in self.potentials:
            self.potentials.remove(potential)
        if potential in self._outside:
            self._outside.remove(potential)
        if potential.origin is not None and potential in potential.origin.values.potentials:
            potential.origin.values.potentials.remove(potential)
        if potential.kept is not None:
            potential.kept.release()
            potential.kept = None
        if self.on_drop is not None:
            self.on_drop(potential)

    # --- the output layer ------------------------------------------------------------------------------------------

    def settle(self, losses: Sequence[Edge]) -> None:
        """Finds the output layers, and which nonlinearities outside the network belong to a loss.

        Args:
            losses: to what is known to be a loss; none where nothing is.
        """
        # A watch that goes on penalising keeps what it found for an earlier loss.
        for potential, is_output_alone in self._settled if self.on_outputs is not None else ():
            if is_output_alone and not potential.enters_loss:
                self._drop(potential)
            else:
                potential.is_output = potential.enters_loss
        self._settled = [] if self.on_outputs is not None else self._settled
        logits = [potential for potential in self.potentials if potential.enters_loss]
        outside = [potential for potential in self._outside if not self.outputs.is_hidden(potential)]
        behind = [potential for potential in outside if self.outputs.is_behind_network(potential)]
        entering = [potential for potential in behind if potential.label in _SIGMOIDS]
        own = [potential for potential in entering if self._is_computed(potential)]
        wholes = [origin for potential in entering for origin in _and_wholes(potential.origin)]
        found, between = self.outputs.find(losses, [*logits, *own], wholes)
        self._has_loss = self._has_loss or bool(losses)
        marked = [potential for target in found for potential in self._mark(target)]
        for potential in [*behind, *self._inside_losses(between, found)]:
            if not potential.is_output:
                self._drop(potential)
        for potential in self._overwritten:
            if potential not in marked:
                self._drop(potential)
        self._overwritten = [potential for potential in self._overwritten if potential in marked]
        self._drop_parts_of_outputs()
        arrange(self.potentials)

    def _drop_parts_of_outputs(self) -> None:
        """A part of the output that a function turns into a parameter, such as a scale, is no layer of its own."""
        outputs = {id(potential.origin): potential for potential in self.potentials if potential.is_output}
        for potential in [*self.potentials]:
            origin = None if potential.origin is None else potential.origin.whole
            while origin is not None and id(origin) not in outputs:
                origin = origin.whole
            if origin is not None and outputs[id(origin)] is not potential:
                outputs[id(origin)].results.extend(potential.results)
                self._drop(potential)

    def _inside_losses(self, between: set[Any], found: Sequence[Target[Kept]]) -> list[Potential[Kept]]:
        """The nonlinearities of a loss that the network computes itself: no weights come after the output."""
        inside = [
            potential
            for potential in self.potentials
            if not potential.is_output and any(edge[0] in between for edge in potential.results)
        ]
        if not inside or not found:
            return []
        outputs = {edge for target in found for edge in target.edges}
        below = set().union(*map(edges_below, outputs))
        depth = max(
            (potential.origin.weighings for potential in self.potentials if potential.is_output and potential.origin),
            default=0,
        )
        return [
            potential
            for potential in inside
            if below.isdisjoint(potential.results)
            and potential.origin is not None
            and potential.origin.weighings <= depth
            and any(not edges_below(edge).isdisjoint(outputs) for edge in potential.results)
        ]

    def _is_computed(self, potential: Potential[Kept]) -> bool:
        """Whether what enters a loss's sigmoid is more than a part or a multiple of what a network returned."""
        assert potential.origin is not None
        return potential.origin.whole is None

    def _mark(self, target: Target[Kept]) -> list[Potential[Kept]]:
        """Takes a tensor for the output layer."""
        potentials = [self.whole_potential(potential) for potential in target.potentials]
        if target.tensor is not None and target.origin is not None:
            origin = target.origin
            if origin.path is not None and isinstance(self.frames.module_at(origin.path), RECURRENT_MODULES):
                self._has_recurrent_output = True
                return []
            potentials = origin.values.potentials
            if not potentials:
                if origin.reference() is not target.tensor or not self.is_potential(target.tensor):
                    return []
                if origin.path is None and (origin.source is None or origin.source.place is None):
                    origin.source = Source(target.path)
                potential = self.add(target.tensor, "output", False, is_output=True)
                self._settled.append((potential, True))
                potential.results.extend([self.edge(target.tensor), *target.edges])
                return [potential]
        for potential in potentials:
            potential.results.extend(edge for edge in target.edges if potential in self._overwritten)
            if not potential.is_output:
                potential.is_output = True
                self._settled.append((potential, False))
        return potentials

    def whole_potential(self, potential: Potential[Kept]) -> Potential[Kept]:
        """The potential of which this one, which turned out to be an output, is a part or a multiple."""
        assert potential.origin is not None
        top = self.origins.top(potential.origin)
        values, whole = top.values, top.reference()
        if potential in values.potentials:
            return potential
        if not values.potentials:
            if whole is None or not self.is_potential(whole):
                return potential
            self.add(whole, potential.label, False, is_output=True)
        found: Potential[Kept] = values.potentials[0]
        found.results.extend(potential.results)
        self._drop(potential)
        return found

    # --- potentials --------------------------------------------------------------------------------------------

    def is_potential(self, z: Any) -> bool:
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

    def _is_of_no_network(self, z: Tensor) -> bool:
        """Whether a tensor outside of every call of the network has nothing to do with its weights."""
        if self.in_call:
            return False
        origin = self.origins.find(z)
        return origin is None or not origin.is_made

    def _meet(self, z: Tensor, label: str, in_place: bool, activation: Frame | None = None) -> Potential[Kept]:
        """The potential that a tensor is where a nonlinearity reads it: a new one, unless another one has read it."""
        known: list[Potential[Kept]] = self.origins.of(z).values.potentials
        if not known:
            return self.add(z, label, in_place, is_output=False, activation=activation)
        known[0].enters_nonlinearity = True
        if in_place and known[0].kept is not None:
            known[0].kept.preserve(z)
        return known[0]

    def add(
        self, z: Tensor, label: str, in_place: bool, is_output: bool, activation: Frame | None = None
    ) -> Potential[Kept]:
        """Takes a tensor for a potential; `label` and `activation` name its layer where no weights do."""
        origin = self.origins.of(z)
        if origin.source is None:
            origin.source = Source(None)
        if origin.source.name is None:
            self.frames.name_place(origin.source, label, activation)
        evaluation = origin.source.evaluation
        potential: Potential[Kept] = Potential(origin.source.name or "output", evaluation, origin.unit_dim, is_output)
        potential.origin = origin
        potential.units = z.shape[origin.unit_dim] if z.ndim > 1 else 1
        potential.label = label
        if origin.measured is not None:
            potential.measured = origin.measured
            potential.results.extend(origin.measured.results)
        if self.selection.selects(potential.layer, is_output):
            if self.checkpoints.regions:
                with self.checkpoints.unseen():
                    potential.kept = self.keep(z, potential, in_place)
            else:
                potential.kept = self.keep(z, potential, in_place)
        origin.values.potentials.append(potential)
        self.potentials.append(potential)
        if not self.in_call and not is_output:
            potential.number_of_calls = len(self.outputs.calls)
            self._outside.append(potential)
        return potential


def _and_wholes(origin: Origin | None) -> Iterator[Origin]:
    while origin is not None:
        yield origin
        origin = origin.whole
