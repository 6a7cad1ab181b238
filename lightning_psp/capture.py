"""Watching a forward pass: every call of a nonlinearity, the potential that enters it, and its layer's name."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import activation as activation_modules
from torch.nn.modules import module as module_hooks
from torch.nn.modules.loss import _Loss
from torch.nn.utils.parametrize import ParametrizationList
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from torchmetrics import Metric, MetricCollection

from lightning_psp.graph import Edge, reach_from
from lightning_psp.nonlinearities import Activation, Nonlinearities, TorchFunction
from lightning_psp.provenance import Handler, NetworkCall, Origin, Provenance, tensors_in
from lightning_psp.selection import LayerSelection

Kept = TypeVar("Kept")

_ACTIVATION_MODULES: tuple[type[nn.Module], ...] = tuple(
    getattr(activation_modules, name) for name in activation_modules.__all__ if name != "MultiheadAttention"
)
_SIGMOIDS = ("sigmoid", "softplus", "logsigmoid")
_NO_NETWORK = (_Loss, nn.PairwiseDistance, nn.CosineSimilarity, Metric, MetricCollection)
# Their backward needs their result alone; the graph of all others holds the potential itself.
_KEEPS_RESULT = ("relu", "sigmoid", "tanh")
_SOFTMAX = (functional.softmax, torch.softmax, Tensor.softmax, torch.special.softmax)
_LOG_SOFTMAX = (functional.log_softmax, torch.log_softmax, Tensor.log_softmax, torch.special.log_softmax)


class Potential(Generic[Kept]):
    """One passage of a layer's potentials through its nonlinearity.

    Args:
        layer: name of the layer.
        unit_dim: the dimension of the neurons.
        is_output: whether it is the output layer's.
    """

    __slots__ = ("is_output", "kept", "label", "layer", "number_of_calls", "results", "unit_dim")

    def __init__(self, layer: str, unit_dim: int, is_output: bool) -> None:
        self.layer = layer
        self.unit_dim = unit_dim
        self.is_output = is_output
        self.kept: Kept | None = None
        self.results: list[Edge] = []  # to what the nonlinearity gave
        self.label = ""  # of a nonlinearity outside the network
        self.number_of_calls = 0  # of the network before that

    def add_result(self, result: Any) -> None:
        """Notes what a nonlinearity made of the potential."""
        if isinstance(result, Tensor):
            self.results.append((result.grad_fn, result.output_nr))


class _Frame(NamedTuple):
    """A module whose forward is running; path is None for a module outside the network."""

    module: nn.Module
    path: str | None
    starts_call: bool
    potential: Potential[Any] | None


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
    """

    def __init__(
        self,
        root: nn.Module,
        nonlinearities: Nonlinearities,
        selection: LayerSelection,
        keep: Callable[[Tensor, Potential[Kept], bool], Kept],
        root_is_network: bool,
        tracks_units: bool,
    ) -> None:
        super().__init__()
        self.potentials: list[Potential[Kept]] = []
        self.on_backward: Callable[[Tensor], None] | None = None  # called before a backward pass inside the watch
        self.on_outputs: Callable[[], None] | None = None  # called when the output layer of a call is known
        self.redirected = False  # whether the first call of root stands for a step of training, not for the network
        self._root = root
        self._nonlinearities = nonlinearities
        self._selection = selection
        self._keep = keep
        self._root_is_network = root_is_network
        self._tracks_units = tracks_units
        self.fused: dict[str, None] = {}  # modules with fused kernels that the selection leaves out
        self._foreign: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._provenance = Provenance(nonlinearities, tracks_units)
        self._paths: dict[nn.Module, str] = {}
        self._frames: list[_Frame] = []
        self._hooks: list[RemovableHandle] = []
        self._skip_without_grad = False
        self._suppressed = 0
        self._handlers = self._make_handlers()
        self._start()

    def _make_handlers(self) -> dict[TorchFunction, Handler]:
        known = self._nonlinearities
        handlers: dict[TorchFunction, Handler] = {**self._provenance.handlers, Tensor.backward: self._backward}
        handlers.update(dict.fromkeys(_SOFTMAX, self._softmax))
        handlers.update(dict.fromkeys(_LOG_SOFTMAX, self._log_softmax))
        handlers.update(dict.fromkeys(known.fused, self._fused))
        handlers.update(dict.fromkeys(known.output, self._loss))
        handlers.update(dict.fromkeys(known.output_of_loss, self._loss_outside))
        handlers.update(dict.fromkeys(known.direct_losses, self._direct_loss))
        handlers.update(dict.fromkeys(known.probability_losses, self._probability_loss))
        handlers.update(dict.fromkeys(known.hidden, self._activation))
        return handlers

    # --- scope -------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.potentials = []
        self._provenance.clear()
        self._frames = []
        self._suppressed = 0
        self.saw_empty_batch = False
        self._step_call = NetworkCall()
        self._call: NetworkCall | None = None
        self._has_loss = False
        self._outputs_resolved = False
        self._number_of_calls = 0
        self._outputs: list[tuple[str, NetworkCall, list[Tensor]]] = []
        self._confirmed: list[tuple[NetworkCall, Tensor]] = []  # outputs that entered a loss as they are
        self._last_softmax: Origin | None = None
        self._outside: list[Potential[Kept]] = []  # not yet known to be hidden or part of a loss
        self._call_results: list[Edge] = []

    def __enter__(self) -> Capture[Kept]:
        """Starts a new watch."""
        self._start()
        self._find_paths()
        self._skip_without_grad = torch.is_grad_enabled()
        self._hooks = [
            module_hooks.register_module_forward_pre_hook(self._enter_module),
            module_hooks.register_module_forward_hook(self._leave_module, always_call=True),
        ]
        try:
            super().__enter__()  # type: ignore[no-untyped-call]
        except BaseException:
            self._remove_hooks()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the watch; the potentials seen stay in `potentials`."""
        try:
            super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        finally:
            self._remove_hooks()
            self._frames = []
        if error is None:
            self.resolve_outputs()
            if self.on_outputs is not None:
                self.on_outputs()
        self._provenance.clear()
        self._outputs = []
        self._confirmed = []
        self._outside = []
        self._call_results = []
        self._last_softmax = None

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _find_paths(self) -> None:
        self._paths = {module: path for path, module in self._root.named_modules()}

    def __torch_function__(
        self, func: TorchFunction, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch in place of every torch function."""
        handler = self._handlers.get(func)
        if handler is None:
            result = func(*args, **kwargs) if kwargs else func(*args)
            if self._tracks_units and func not in self._nonlinearities.channels:
                self._provenance.follow_units(args, result)
            return result
        return handler(func, args, kwargs or {})

    # --- modules -----------------------------------------------------------------------------------------------

    def _enter_module(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        path = self._paths.get(module)
        if path is None and (module._parameters or module._modules) and module not in self._foreign:
            self._find_paths()  # a module that was added since
            path = self._paths.get(module)
            if path is None:
                self._foreign.add(module)
        if path == "" and self.redirected:
            self.redirected = False
            path = None
        starts_call = path is not None and self._call is None and not isinstance(module, _NO_NETWORK)
        if starts_call:
            self._call = NetworkCall()
            self._number_of_calls += 1
        potential = None
        if isinstance(module, ParametrizationList):  # makes a weight
            self._suppressed += 1
        if self._nonlinearities.module_classes and isinstance(module, self._nonlinearities.module_classes):
            potential = self._enter_activation_module(module, path, inputs)
        self._frames.append(_Frame(module, path, starts_call, potential))

    def _enter_activation_module(
        self, module: nn.Module, path: str | None, inputs: tuple[Any, ...]
    ) -> Potential[Kept] | None:
        name = path or type(module).__name__.lower()
        if not inputs:
            raise TypeError(f"Expected the input of activation {name!r} to be passed by position.")
        potential = None
        if not self._suppressed and self._is_potential(inputs[0]):
            in_place = bool(getattr(module, "inplace", False))
            potential = self._add(inputs[0], name, in_place, is_output=False)
        self._suppressed += 1
        return potential

    def _leave_module(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not self._frames or self._frames[-1].module is not module:
            return  # entered before the watch began
        frame = self._frames.pop()
        if isinstance(module, ParametrizationList):
            self._suppressed -= 1
        if self._nonlinearities.module_classes and isinstance(module, self._nonlinearities.module_classes):
            self._suppressed -= 1
            if frame.potential is not None and isinstance(output, Tensor):
                frame.potential.add_result(output)
                self._provenance.renew(output).potential = frame.potential
        if frame.path is None:
            return
        self._provenance.record_module(frame.path, self._call, output)
        if frame.starts_call:
            assert self._call is not None
            self._note_network_output(module, frame.path, self._call, output)
            self._call = None
            if self._root_is_network and frame.path == "":
                self.resolve_outputs()
                self._outputs_resolved = True
                if self.on_outputs is not None:
                    self.on_outputs()

    # --- the network's output ----------------------------------------------------------------------------------

    def _note_network_output(self, module: nn.Module, path: str, call: NetworkCall, output: Any) -> None:
        if not self._counts() or next(module.parameters(), None) is None:
            return  # a teacher; a loss, a distance, a pooling
        tensors = [tensor for tensor in tensors_in(output) if tensor.ndim > 0]
        if not tensors:
            return
        self._call_results.extend((tensor.grad_fn, tensor.output_nr) for tensor in tensors)
        origins = [self._provenance.of(tensor) for tensor in tensors]
        tensors = [o.entering if o.entering is not None else t for o, t in zip(origins, tensors, strict=True)]
        if self._last_softmax is not None:
            self._last_softmax.entering = None
        self._outputs.append((path, call, tensors))

    def resolve_outputs(self) -> None:
        """Takes the network's return value for the output layer where no loss with a softmax or sigmoid did so."""
        self._resolve_outside()
        outputs, self._outputs = self._outputs, []
        confirmed, self._confirmed = self._confirmed, []
        has_loss, self._has_loss = self._has_loss, False
        paths = {path for path, call, _ in outputs if any(call is confirmed_call for confirmed_call, _ in confirmed)}
        if has_loss:
            outputs = [
                (path, call, [tensor]) for path, call, _ in outputs for other, tensor in confirmed if other is call
            ]
        elif paths:
            outputs = [entry for entry in outputs if entry[0] in paths]
        elif outputs:
            # The network that was called last: what came before it was its input.
            outputs = [entry for entry in outputs if entry[0] == outputs[-1][0]]
        for path, call, tensors in outputs:
            for tensor in tensors:
                self._add_output(tensor, path, call)

    def _add_output(self, tensor: Tensor, path: str, call: NetworkCall) -> None:
        origin = self._provenance.of(tensor)
        earlier = [origin.potential] if origin.potential is not None else origin.values.potentials
        if earlier:
            for potential in earlier:
                potential.is_output = True
        elif self._is_potential(tensor):
            if origin.path is None:
                origin.path, origin.call = path, call
            self._add(tensor, "output", in_place=False, is_output=True).add_result(tensor)

    def _resolve_outside(self) -> None:
        """Finds the nonlinearities outside the network that belong to a loss: no call of a network uses their result.

        Sigmoids and their logarithms make their potential the output layer. Of others (the margin of a hinge loss) the
        network's output, from which the potential was made, is it.
        """
        outside, self._outside = self._outside, []
        for potential in outside:
            later = self._call_results if potential.number_of_calls < self._number_of_calls else []
            used = any(reach_from(edge).edges.intersection(potential.results) for edge in later if edge[0] is not None)
            if potential.is_output or used:
                continue
            if potential.label in _SIGMOIDS:
                potential.is_output = True
                self._has_loss = True
            elif any(reach_from(edge).edges.intersection(self._call_results) for edge in potential.results):
                self.potentials.remove(potential)

    # --- functions ---------------------------------------------------------------------------------------------

    def _activation(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        z = args[0] if args else kwargs.get("input")
        if self._suppressed or not isinstance(z, Tensor) or not self._is_potential(z):
            return func(*args, **kwargs)
        activation = self._nonlinearities.hidden[func]
        in_place = activation.overwrites(args, kwargs)
        values = self._provenance.of(z).values
        # The logits once more; or, in a loss outside the network, the same values once more.
        output = next((potential for potential in values.potentials if potential.is_output or not self._frames), None)
        if output is not None:
            result = func(*args, **kwargs)
            output.add_result(result)
            return result
        if in_place and z.requires_grad:
            if z._is_view():
                return self._overwrite_view(func, z, activation, args, kwargs)
            if args and activation.label in _KEEPS_RESULT and self._provenance.can_be_replaced(z):
                return self._replace(func, z, activation, args, kwargs)
        potential = self._add(z, self._host(activation.label), in_place, is_output=False)
        result = func(*args, **kwargs)
        potential.add_result(result)
        if isinstance(result, Tensor):
            self._provenance.renew(result).potential = potential
        if not self._frames and not self._root_is_network:
            potential.label, potential.number_of_calls = activation.label, self._number_of_calls
            self._outside.append(potential)
        return result

    def _replace(
        self, func: TorchFunction, z: Tensor, activation: Activation, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        # Nobody else holds the memory of the potential: instead of a copy of it, the nonlinearity gets new memory to
        # write to, and the tensor that it was to overwrite becomes its result.
        result: Tensor = activation.out_of_place(func, args, kwargs)
        self._provenance.exchange(z, result)
        potential = self._add(result, self._host(activation.label), False, is_output=False)
        potential.add_result(z)
        self._provenance.renew(z).potential = potential
        return z

    def _overwrite_view(
        self, func: TorchFunction, z: Tensor, activation: Activation, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        # Overwriting a view rebuilds the graph of its base without a node for the view: the nonlinearity works on a
        # copy that has one, and the view receives the result.
        copied = z.clone()
        origin = self._provenance.of(z)
        duplicate = self._provenance.of(copied)
        duplicate.path, duplicate.call, duplicate.unit_dim = origin.path, origin.call, origin.unit_dim
        potential = self._add(copied, self._host(activation.label), True, is_output=False)
        result = func(copied, *args[1:], **{key: value for key, value in kwargs.items() if key != "input"})
        potential.add_result(result)
        z.copy_(result)
        self._provenance.renew(z).potential = potential
        return z

    def _loss(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        z = args[0] if args else kwargs.get("input")
        if isinstance(z, Tensor):
            self._enter_loss(z, self._nonlinearities.output.get(func, "log_softmax"), result)
        return result

    def _loss_outside(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._call is not None:
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if args and isinstance(args[0], Tensor):
            self._enter_loss(args[0], self._nonlinearities.output_of_loss[func], result)
        return result

    def _direct_loss(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        if self._call is None:
            for tensor in [*args, *kwargs.values()][:2]:
                origin = self._provenance.find(tensor)
                if origin is not None and origin.call is not None and self._counts():
                    self._confirmed.append((origin.call, tensor))
        return result

    def _log_softmax(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Outside the network it belongs to the loss; inside, its result must reach the output or a loss first.
        handler = self._softmax if self._call is not None else self._loss
        return handler(func, args, kwargs)

    def _enter_loss(self, z: Tensor, label: str, result: Any) -> None:
        """Takes the tensor that enters a loss's own softmax or sigmoid for the output layer."""
        if self._suppressed or not self._is_potential(z):
            return
        if self._outputs_resolved and self._call is None:
            return  # the network's return value is the output layer already
        self._has_loss = True
        values = self._provenance.of(z).values
        if not values.potentials:
            self._add(z, self._host(label), in_place=False, is_output=True)
        for potential in values.potentials:
            potential.is_output = True
            potential.add_result(result)

    def _probability_loss(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        origin = self._provenance.find(args[0] if args else kwargs.get("input"))
        if origin is not None:
            if origin.potential is not None:
                origin.potential.is_output = True
                self._has_loss = True
            elif origin.entering is not None:
                self._enter_loss(origin.entering, "log_softmax", result)
        return result

    def _softmax(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        z = args[0] if args else kwargs.get("input")
        if isinstance(z, Tensor) and self._is_potential(z):
            # Whether these are probabilities of the output or weights of attention shows later. Of a softmax only the
            # last can be the network's output: the tensors of all others are let go.
            origin = self._provenance.renew(result)
            origin.entering = z
            if func in _SOFTMAX:
                if self._last_softmax is not None:
                    self._last_softmax.entering = None
                self._last_softmax = origin
        return result

    def _fused(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer = self._host(self._nonlinearities.fused[func])
        if self._counts():
            frame_path = next((frame.path for frame in reversed(self._frames) if frame.path), layer)
            if self._selection.selects(frame_path):
                raise NotImplementedError(
                    f"The potentials of {frame_path!r} are computed inside the fused function"
                    f" `{self._nonlinearities.fused[func]}` and cannot be seen. Leave it out with"
                    f" exclude=({frame_path!r},), or write it with separate linear maps and nonlinearities."
                )
            self.fused[frame_path] = None
        return func(*args, **kwargs)

    def _backward(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.on_backward is not None:
            self.on_backward(args[0])
        return func(*args, **kwargs)

    # --- potentials --------------------------------------------------------------------------------------------

    def _is_potential(self, z: Any) -> bool:
        if isinstance(z, Tensor) and z.numel() == 0:
            self.saw_empty_batch = True
            return False
        return (
            isinstance(z, Tensor)
            and z.ndim > 0
            and z.is_floating_point()
            and z.layout is torch.strided
            and not z.is_nested
            and not _is_batched(z)
            and not isinstance(z, nn.Parameter)
            and self._counts()
            and self._is_of_this_network()
        )

    def _counts(self) -> bool:
        """False for a call without gradient inside a watch that began with it."""
        return torch.is_grad_enabled() or not self._skip_without_grad

    def _is_of_this_network(self) -> bool:
        """False inside the call of another network than `root`."""
        if not self._frames or self._call is not None or not self._root_is_network:
            return True
        outermost = self._frames[0].module
        return not outermost._parameters and not outermost._modules

    def _host(self, label: str) -> str:
        """The name of a layer whose potential is no module's output."""
        known = [frame for frame in self._frames if frame.path is not None]
        path = (known[-1].path or "") if known else ""
        if path and isinstance(known[-1].module, _ACTIVATION_MODULES):
            return path
        return f"{path}.{label}" if path else label

    def _add(self, z: Tensor, host: str, in_place: bool, is_output: bool) -> Potential[Kept]:
        origin = self._provenance.of(z)
        name = host if origin.path is None else origin.path or "output"
        call = self._call or origin.call or self._step_call
        potential: Potential[Kept] = Potential(call.number(name), origin.unit_dim, is_output)
        if self._selection.selects(potential.layer, is_output):
            potential.kept = self._keep(z, potential, in_place)
        origin.values.potentials.append(potential)
        self.potentials.append(potential)
        return potential


def _is_batched(z: Tensor) -> bool:
    if torch._C._functorch.is_batchedtensor(z):
        raise NotImplementedError(
            "Potentials inside `torch.vmap` cannot be seen as the tensors of one batch. Call the network on the batch."
        )
    return False
