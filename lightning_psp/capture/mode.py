"""Watching a forward pass: every call of a nonlinearity, the potential that enters it, and its layer's name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss
from torch.nn.utils.parametrize import ParametrizationList
from torch.overrides import TorchFunctionMode
from torchmetrics import Metric, MetricCollection

from lightning_psp.capture.checkpoints import Checkpoints, in_backward
from lightning_psp.capture.frames import Frames
from lightning_psp.capture.fused_calls import FusedCalls
from lightning_psp.capture.in_place import overwrite_view, replace_memory
from lightning_psp.capture.kinds import is_of_another_kind, is_transformed
from lightning_psp.capture.module_calls import has_one_listener, told_of_module_calls
from lightning_psp.capture.nonlinearities import Nonlinearities, TorchFunction
from lightning_psp.capture.outputs import OutputFinder
from lightning_psp.capture.provenance import Handler, Kept, NetworkCall, Potential, Provenance, tensors_in
from lightning_psp.capture.recurrent import RECURRENT_MODULES
from lightning_psp.compilation.runs import announce_graph, told_of_graphs
from lightning_psp.gradient.graph import reach_from
from lightning_psp.penalty import Reduction
from lightning_psp.selection import LayerSelection

Other = TypeVar("Other")

_is_traced = torch.compiler.is_dynamo_compiling

# Of which other nonlinearities are made.
_BUILDING_BLOCKS = ("sigmoid", "softplus", "tanh")
_NO_NETWORK = (_Loss, nn.PairwiseDistance, nn.CosineSimilarity, Metric, MetricCollection)


class Capture(TorchFunctionMode, Generic[Kept]):
    """While entered, sees the potentials of a network; leaves nothing on its modules.

    Args:
        root: the network; layers are named relative to it.
        nonlinearities: the functions and module classes to react to.
        selection: the layers for which `keep` is called.
        keep: called with each potential, before its nonlinearity runs, as `keep(z, potential, in_place)`;
            what it returns is stored in the potential.
        root_is_network: whether a call of `root` is a call of the network, its return value the network's output.
        tracks_units: whether `unit_dim` of the potentials is needed.
        reduction: reduction of a penalty whose gradient compiled functions are to add; None if they are to give the
            potentials themselves.
    """

    def __init__(
        self,
        root: nn.Module,
        nonlinearities: Nonlinearities,
        selection: LayerSelection,
        keep: Callable[[Tensor, Potential[Kept], bool], Kept],
        root_is_network: bool,
        tracks_units: bool,
        reduction: Reduction | None,
    ) -> None:
        super().__init__()
        self.potentials: list[Potential[Kept]] = []
        self.on_backward: Callable[[Tensor], None] | None = None  # called before a backward pass inside the watch
        self.on_outputs: Callable[[], None] | None = None  # called when the output layer of a call is known
        self.redirected = False  # whether the first call of root stands for a step of training, not for the network
        self.penalises = False  # whether potentials are to lie on the path to a loss where they have no other use
        self.root = root
        self.nonlinearities = nonlinearities
        self.set_reduction(reduction)
        self._special_classes: tuple[type[nn.Module], ...] = (ParametrizationList, *nonlinearities.module_classes)
        self.selection = selection
        self.keep = keep
        self.root_is_network = root_is_network
        self._tracks_units = tracks_units
        self.fused_calls = FusedCalls(self)
        self.written_out: dict[str, str] = {}  # layers inside of what may be an activation written out, and its class
        self.left_out: dict[str, None] = {}  # where complex, sparse and nested tensors enter nonlinearities
        self.provenance = Provenance(nonlinearities, tracks_units)
        self.frames = Frames(root)
        self._scope = ExitStack()
        self.skips_without_grad = False  # whether calls without gradient are none of the watch's
        self.suppressed = 0
        self._is_suspended = False
        self.outputs = OutputFinder(self)
        self.checkpoints = Checkpoints(
            {**dict.fromkeys(self.outputs.handlers(nonlinearities)), **nonlinearities.hidden}
        )
        self._handlers = self._make_handlers()
        self._start()

    def _make_handlers(self) -> dict[TorchFunction, Handler]:
        known = self.nonlinearities
        handlers: dict[TorchFunction, Handler] = {
            **self.provenance.handlers,
            Tensor.backward: self._backward,
            torch.autograd.grad: self._differentiate,
        }
        handlers.update(self.outputs.handlers(known))
        handlers.update(self.fused_calls.handlers(known))
        handlers.update(dict.fromkeys(known.hidden, self._activation))
        return handlers

    # --- scope -------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.potentials = []
        self.provenance.clear()
        self.frames.running = []
        self.suppressed = 0
        self.saw_empty_batch = False
        self.has_skipped = False  # whether something was not counted because it came without gradient
        self.step_call = NetworkCall()
        self.call: NetworkCall | None = None
        self.number_of_calls = 0
        self.outputs.start()

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
            self.frames.running = []
        if error is None:
            self.outputs.resolve()
            if self.on_outputs is not None:
                self.on_outputs()
        self.provenance.clear()
        self.outputs.start()

    def __torch_function__(
        self, func: TorchFunction, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch in place of every torch function."""
        if _is_traced():
            return announce_graph(self._compilation_key, func, args, kwargs or {})
        handler = None if self._is_suspended else self._handlers.get(func)
        if handler is None:
            result = func(*args, **kwargs) if kwargs else func(*args)
            if self._tracks_units and not self._is_suspended and func not in self.nonlinearities.channels:
                self.provenance.follow_units(args, result)
            return result
        if in_backward():
            return func(*args, **(kwargs or {}))
        if self.checkpoints.regions:
            with self.checkpoints.call(func):
                return handler(func, args, kwargs or {})
        return handler(func, args, kwargs or {})

    # --- modules -----------------------------------------------------------------------------------------------

    def enter_module(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Notes that the forward of a module starts."""
        if self._is_suspended or in_backward():
            return
        frame = self.frames.frame_of(module)
        if self.redirected and frame.path == "":
            self.redirected = False
            frame = frame._replace(path=None)
        if self.call is None and frame.path is not None and not isinstance(module, _NO_NETWORK):
            self.call = NetworkCall()
            self.number_of_calls += 1
            frame = frame._replace(starts_call=True)
        if isinstance(module, self._special_classes):
            if isinstance(module, ParametrizationList):  # makes a weight
                self.suppressed += 1
            if isinstance(module, self.nonlinearities.module_classes):
                frame = frame._replace(potential=self._enter_activation_module(module, frame.path, inputs))
        self.frames.running.append(frame)

    def _enter_activation_module(
        self, module: nn.Module, path: str | None, inputs: tuple[Any, ...]
    ) -> Potential[Kept] | None:
        name = path or type(module).__name__.lower()
        if not inputs:
            raise TypeError(f"Expected the input of activation {name!r} to be passed by position.")
        potential = None
        if not self.suppressed and not self.outputs.is_behind and self.is_potential(inputs[0]):
            in_place = bool(getattr(module, "inplace", False))
            potential = self.add(inputs[0], name, in_place, is_output=False)
        self.suppressed += 1
        return potential

    def leave_module(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Notes what the forward of a module returned."""
        if self._is_suspended or in_backward():
            return
        if not self.frames.running or self.frames.running[-1].module is not module:
            return  # entered before the watch began
        frame = self.frames.running.pop()
        if isinstance(module, self._special_classes):
            self.suppressed -= 1
            if frame.potential is not None and isinstance(output, Tensor):
                frame.potential.add_result(output)
                self.provenance.record_result(output, frame.potential)
        if frame.path is None:
            return
        self.provenance.record_module(frame.path, self.call, output)
        if frame.starts_call:
            assert self.call is not None
            self.outputs.note_network(module, frame.path, self.call, output)
            if self.root_is_network and frame.path == "":
                self.outputs.resolve()  # still within the call, which a wrapper of the network may have made
                self.outputs.is_resolved = True
                if self.on_outputs is not None:
                    self.on_outputs()
            self.call = None

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
        return Capture(self.root, self.nonlinearities, LayerSelection(), keep, self.root_is_network, True, None)

    def resume_in(self, other: Capture[Any]) -> None:
        """Takes up the place in the network where another capture is."""
        self.frames.running = list(other.frames.running)
        self.outputs.is_resolved = other.outputs.is_resolved
        self.call = None if other.call is None else NetworkCall()

    # --- functions ---------------------------------------------------------------------------------------------

    def _activation(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        z = args[0] if args else kwargs.get("input")
        activation = self.nonlinearities.hidden[func]
        if self.suppressed or not isinstance(z, Tensor) or not self.is_potential(z) or self._is_of_no_network(z):
            if isinstance(z, Tensor) and is_of_another_kind(z) and not self.suppressed and self.counts():
                self.left_out[self.frames.host(activation.label)] = None
            return func(*args, **kwargs)
        in_place = activation.overwrites(args, kwargs)
        if activation.label in _BUILDING_BLOCKS and self.provenance.of(z).path is None:
            self._note_written_out(activation.label)
        for other in self.provenance.of(z).values.potentials:
            # The logits once more; or, in a loss outside the network, the same values once more.
            if other.is_output or self.call is None:
                result = func(*args, **kwargs)
                other.add_result(result)
                return result
        if self.outputs.is_behind:
            return func(*args, **kwargs)
        if in_place and z.requires_grad:
            if z._is_view():
                return overwrite_view(self, func, z, args, kwargs)
            # Another capture keeps references to the tensors that would change places.
            is_held = not self.checkpoints.regions and has_one_listener()
            if is_held and args and self.provenance.can_be_replaced(z):
                return replace_memory(self, func, args, kwargs)
        potential = self.add(z, self.frames.host(activation.label), in_place, is_output=False)
        result = func(*args, **kwargs)
        potential.add_result(result)
        if isinstance(result, Tensor):
            self.provenance.record_result(result, potential)
        if self.call is None and not self.root_is_network:
            potential.label, potential.number_of_calls = activation.label, self.number_of_calls
            self.outputs.note_outside(potential)
        return result

    def _note_written_out(self, label: str) -> None:
        module = self.frames.running[-1].module if self.frames.running else self.root
        if not (module._parameters or module._modules or module._buffers):
            self.written_out[self.frames.host(label)] = f"{type(module).__module__}.{type(module).__qualname__}"

    def _backward(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.on_backward is not None:
            self.on_backward(args[0])
        return func(*args, **kwargs)

    def _differentiate(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        gradients = func(*args, **kwargs)
        if any(gradient.requires_grad for gradient in tensors_in(gradients)):
            # A loss made of them depends on potentials that it may not reach through their nonlinearity's result.
            for differentiated in tensors_in(args[0] if args else kwargs["outputs"]):
                edges = reach_from((differentiated.grad_fn, differentiated.output_nr)).edges
                for potential in self.potentials:
                    potential.is_differentiated |= not edges.isdisjoint(potential.results)
        return gradients

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
            and self._is_of_this_network()
        )

    def counts(self) -> bool:
        """False for a call without gradient inside a watch that began with it."""
        if torch.is_grad_enabled() or not self.skips_without_grad:
            return True
        self.has_skipped = True
        return False

    def is_recurrent(self, path: str) -> bool:
        """Whether the module at a path is a recurrent layer, whose results are no potentials."""
        return isinstance(self.frames.module_at(path), RECURRENT_MODULES)

    def _is_of_no_network(self, z: Tensor) -> bool:
        """Whether a tensor outside every module call is made of data alone, such as a target."""
        is_outside = self.call is None and not self.root_is_network
        return is_outside and not z.requires_grad and torch.is_grad_enabled()

    def _is_of_this_network(self) -> bool:
        """False inside the call of another network than `root`."""
        if not self.frames.running or self.call is not None or not self.root_is_network:
            return True
        outermost = self.frames.running[0].module
        return not outermost._parameters and not outermost._modules

    def add(self, z: Tensor, host: str, in_place: bool, is_output: bool) -> Potential[Kept]:
        """Takes a tensor for a potential; `host` is its layer's name where it is no module's output."""
        origin = self.provenance.of(z)
        name = host if origin.path is None else origin.path or "output"
        call = self.call or origin.call or self.step_call
        potential: Potential[Kept] = Potential(call.number(name), origin.unit_dim, is_output)
        potential.units = z.shape[origin.unit_dim] if z.ndim > 1 else 1
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
        return potential
