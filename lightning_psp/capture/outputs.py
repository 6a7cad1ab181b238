"""Finding the output layer: the tensor that enters the loss's own softmax or sigmoid, or the network's return value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_psp.capture.nonlinearities import Nonlinearities, TorchFunction
from lightning_psp.capture.provenance import Handler, Kept, NetworkCall, Origin, Potential, tensors_in
from lightning_psp.gradient.graph import Edge, reach_from

if TYPE_CHECKING:
    from lightning_psp.capture.mode import Capture

_SIGMOIDS = ("sigmoid", "softplus", "logsigmoid")
_SOFTMAX = (functional.softmax, torch.softmax, Tensor.softmax, torch.special.softmax)
_LOG_SOFTMAX = (functional.log_softmax, torch.log_softmax, Tensor.log_softmax, torch.special.log_softmax)


class Returned(NamedTuple):
    """What an outermost call of a module returned."""

    path: str
    call: NetworkCall
    tensors: list[Tensor]
    is_trained: bool  # whether the module has a parameter that is not frozen
    edges: list[Edge]  # to them, or to what a compiled function made of them


class OutputFinder(Generic[Kept]):
    """Decides which potentials are the output layer's, from the losses and network calls that a capture sees.

    Args:
        capture: the capture that sees them.
    """

    def __init__(self, capture: Capture[Kept]) -> None:
        self._capture = capture
        self.in_losses: dict[str, None] = {}  # nonlinearities outside the network that were taken for parts of a loss
        self.start()

    def start(self) -> None:
        """Forgets everything."""
        self.is_resolved = False  # for good: what follows outside the network adds no output layer
        self.has_loss = False  # whether a loss's own softmax or sigmoid was met
        self.returned: list[Returned] = []
        self.confirmed: list[tuple[NetworkCall, Tensor]] = []  # outputs that entered a loss as they are
        self._outside: list[Potential[Kept]] = []  # not yet known to be hidden or part of a loss
        self._call_results: list[Edge] = []
        self._last_softmax: Origin | None = None

    def handlers(self, known: Nonlinearities) -> dict[TorchFunction, Handler]:
        """The functions that tell of an output layer, and what to do with a call of them."""
        handlers: dict[TorchFunction, Handler] = dict.fromkeys(_SOFTMAX, self._softmax)
        handlers.update(dict.fromkeys(_LOG_SOFTMAX, self._log_softmax))
        handlers.update(dict.fromkeys(known.output, self._loss))
        handlers.update(dict.fromkeys(known.output_of_loss, self._loss_outside))
        handlers.update(dict.fromkeys(known.direct_losses, self._direct_loss))
        handlers.update(dict.fromkeys(known.probability_losses, self._probability_loss))
        return handlers

    @property
    def is_behind(self) -> bool:
        """Whether the network has returned its output layer: what is called now belongs to a loss."""
        return self.is_resolved and self._capture.call is None

    def note_outside(self, potential: Potential[Kept]) -> None:
        """Notes a nonlinearity that was called outside every module."""
        self._outside.append(potential)

    def note_network(self, module: nn.Module, path: str, call: NetworkCall, output: Any) -> None:
        """Notes what an outermost call of a module returned."""
        if not self._capture.counts():
            return  # a teacher
        parameter, is_trained = None, False
        for parameter in module.parameters():
            if parameter.requires_grad:
                is_trained = True
                break
        if parameter is None:
            return  # a loss, a distance, a pooling
        tensors = [tensor for tensor in tensors_in(output) if tensor.ndim > 0]
        if not tensors:
            return
        origins = [self._capture.provenance.of(tensor) for tensor in tensors]
        entering = [o.entering if o.entering is not None else t for o, t in zip(origins, tensors, strict=True)]
        if self._last_softmax is not None:
            self._last_softmax.entering = None
        edges: list[Edge] = [(tensor.grad_fn, tensor.output_nr) for tensor in tensors]
        self.note_returned(Returned(path, call, entering, is_trained, edges))

    def note_returned(self, returned: Returned) -> None:
        """Notes the tensors that an outermost call of a module returned, or of which it returned the softmax."""
        self._call_results.extend(returned.edges)
        self.returned.append(returned)

    def resolve(self, loss: Tensor | None = None) -> None:
        """Takes the network's return value for the output layer where no loss with a softmax or sigmoid did so.

        Args:
            loss: what the step returned or is about to call `backward` of, where that is known.
        """
        self.resolve_outside()
        outputs, self.returned = self.returned, []
        confirmed, self.confirmed = self.confirmed, []
        has_loss, self.has_loss = self.has_loss, False
        paths = {o.path for o in outputs if any(o.call is call for call, _ in confirmed)}
        if has_loss:
            outputs = [o._replace(tensors=[tensor]) for o in outputs for call, tensor in confirmed if call is o.call]
        elif paths:
            outputs = [o for o in outputs if o.path in paths]
        elif outputs:
            # The network that was called last: what came before it was its input.
            last = _without_teachers(outputs, loss)[-1].path
            outputs = [o for o in outputs if o.path == last]
        for output in outputs:
            for tensor in output.tensors:
                self._add_output(tensor, output.path, output.call)

    def _add_output(self, tensor: Tensor, path: str, call: NetworkCall) -> None:
        origin = self._capture.provenance.of(tensor)
        if origin.path is not None and self._capture.is_recurrent(origin.path):
            return
        earlier = [origin.potential] if origin.potential is not None else origin.values.potentials
        if earlier:
            for potential in earlier:
                potential.is_output = True
        elif self._capture.is_potential(tensor):
            if origin.path is None:
                origin.path, origin.call = path, call
            self._capture.add(tensor, "output", in_place=False, is_output=True).add_result(tensor)

    def resolve_outside(self) -> None:
        """Finds the nonlinearities outside the network that belong to a loss: no call of a network uses their result.

        Sigmoids and their logarithms make their potential the output layer. Of others (the margin of a hinge loss) the
        network's output, from which the potential was made, is it.
        """
        outside, self._outside = self._outside, []
        for potential in outside:
            later = self._call_results if potential.number_of_calls < self._capture.number_of_calls else []
            used = any(reach_from(edge).edges.intersection(potential.results) for edge in later if edge[0] is not None)
            if potential.is_output or used:
                continue
            if potential.label in _SIGMOIDS:
                potential.is_output = True
                self.has_loss = True
            elif any(reach_from(edge).edges.intersection(self._call_results) for edge in potential.results):
                self._capture.potentials.remove(potential)
                self.in_losses[potential.label] = None

    def _loss(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._run_loss(func, args, kwargs, self._capture.nonlinearities.output.get(func, "log_softmax"))

    def _loss_outside(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._capture.call is not None:
            return func(*args, **kwargs)
        return self._run_loss(func, args, kwargs, self._capture.nonlinearities.output_of_loss[func])

    def _run_loss(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any], label: str) -> Any:
        z = args[0] if args else kwargs.get("input")
        entering = self._enter_loss(z, label) if isinstance(z, Tensor) else []
        result = func(*args, **kwargs)
        for potential in entering:
            potential.add_result(result)
        return result

    def _direct_loss(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        if self._capture.call is None:
            for tensor in [*args, *kwargs.values()][:2]:
                origin = self._capture.provenance.find(tensor)
                if origin is not None and origin.call is not None and self._capture.counts():
                    self.confirmed.append((origin.call, tensor))
        return result

    def _log_softmax(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Outside the network it belongs to the loss; inside, its result must reach the output or a loss first.
        handler = self._softmax if self._capture.call is not None else self._loss
        return handler(func, args, kwargs)

    def _enter_loss(self, z: Tensor, label: str) -> list[Potential[Kept]]:
        """Takes the tensor that enters a loss's own softmax or sigmoid for the output layer."""
        if self._capture.suppressed or not self._capture.is_potential(z):
            return []
        if self.is_behind:
            return []
        self.has_loss = True
        values = self._capture.provenance.of(z).values
        if not values.potentials:
            self._capture.add(z, self._capture.frames.host(label), in_place=False, is_output=True)
        for potential in values.potentials:
            potential.is_output = potential.enters_loss = True
        return values.potentials

    def _probability_loss(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        origin = self._capture.provenance.find(args[0] if args else kwargs.get("input"))
        if origin is not None:
            if origin.potential is not None:
                origin.potential.is_output = True
                self.has_loss = True
            elif origin.entering is not None:
                for potential in self._enter_loss(origin.entering, "log_softmax"):
                    potential.add_result(result)
        return result

    def _softmax(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        z = args[0] if args else kwargs.get("input")
        if isinstance(z, Tensor) and self._capture.is_potential(z):
            # Whether these are probabilities of the output or weights of attention shows later. Of a softmax only the
            # last can be the network's output: the tensors of all others are let go.
            origin = self._capture.provenance.renew(result)
            origin.entering = z
            if func in _SOFTMAX:
                if self._last_softmax is not None:
                    self._last_softmax.entering = None
                self._last_softmax = origin
        return result


def _without_teachers(outputs: list[Returned], loss: Tensor | None) -> list[Returned]:
    """The outputs of networks that are trained, and of those the ones that the loss is computed from, if any."""
    outputs = [o for o in outputs if o.is_trained] or outputs
    if loss is None or len({o.path for o in outputs}) == 1:
        return outputs
    reached = reach_from((loss.grad_fn, loss.output_nr)).edges
    return [o for o in outputs if not reached.isdisjoint(o.edges)] or outputs
