"""Calls of nonlinearities: what enters one is a potential, which the backward pass has to find though overwritten."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic

from torch import Tensor

from lightning_psp.capture.checkpoints import Checkpoints
from lightning_psp.capture.frames import Frames
from lightning_psp.capture.functions import Handler, TorchFunction
from lightning_psp.capture.kinds import is_of_another_kind
from lightning_psp.capture.ledger import Ledger
from lightning_psp.capture.module_calls import has_one_listener
from lightning_psp.capture.nonlinearities import Activation
from lightning_psp.capture.origin import GATED, Kept, Origin
from lightning_psp.capture.origins import Origins
from lightning_psp.capture.shadow import Graph
from lightning_psp.torch_private.tensors import is_view, swap


class ActivationCalls(Generic[Kept]):
    """Takes what enters nonlinearities for potentials, and notes what becomes of it.

    Args:
        activations: the nonlinearities.
        ledger: takes the potentials.
        frames: the running modules.
        origins: what is known of tensors.
        graph: the graph in which they are.
        checkpoints: the checkpointed functions that are running.
        note_other: notes what follows for the result of a function of which nothing else is known.
    """

    def __init__(
        self,
        activations: Mapping[TorchFunction, Activation],
        *,
        ledger: Ledger[Kept],
        frames: Frames,
        origins: Origins,
        graph: Graph,
        checkpoints: Checkpoints,
        note_other: Callable[[tuple[Any, ...], Any], None],
    ) -> None:
        self.left_out: dict[str, None] = {}  # where complex, sparse and nested tensors enter nonlinearities
        self._activations = activations
        self._ledger = ledger
        self._frames = frames
        self._origins = origins
        self._graph = graph
        self._checkpoints = checkpoints
        self._note_other = note_other

    def handlers(self) -> dict[TorchFunction, Handler]:
        """The functions in question, and what to do with a call of them."""
        return dict.fromkeys(self._activations, self._call)

    def _call(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        z = args[0] if args else kwargs.get("input")
        ledger = self._ledger
        if self._frames.suppressed or z is None or not ledger.is_potential(z) or ledger.is_of_no_network(z):
            return self._follow(func, z, args, kwargs)
        activation = self._activations[func]
        in_place = activation.overwrites(args, kwargs)
        origin = self._origins.of(z)
        if origin.is_weight or origin.made_of == GATED:  # the latter is a state, such as that of an LSTM's cell
            result = func(*args, **kwargs)
            if origin.is_weight:
                self._origins.note_weight(result)
            else:
                self._origins.record_result(result, origin, None)
            return result
        if in_place and z.requires_grad and not origin.values.potentials:
            if is_view(z):
                return self._overwrite_view(func, z, args, kwargs)
            # Another capture keeps references to the tensors that would change places.
            is_held = not self._checkpoints.regions and has_one_listener()
            if is_held and args and self._origins.can_be_replaced(z):
                return self._replace_memory(func, args, kwargs)
        potential = ledger.meet(z, activation.label, in_place)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            potential.results.append(self._graph.edge(result))
            self._origins.record_result(result, origin, potential)
        return result

    def _follow(self, func: TorchFunction, z: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls a nonlinearity whose argument is no potential."""
        is_seen = isinstance(z, Tensor) and is_of_another_kind(z) and not self._frames.suppressed
        if is_seen and self._ledger.counts():
            self.left_out[self._frames.host(self._activations[func].label)] = None
        origin: Origin | None = self._origins.find(z)
        result = func(*args, **kwargs)
        if origin is None or not isinstance(result, Tensor):
            self._note_other((z,), result)
        else:
            self._origins.record_result(result, origin, None)
        return result

    def _replace_memory(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Calls a nonlinearity so that it writes to new memory, and keeps the potential without a copy of it.

        Args:
            func: the nonlinearity.
            args: positional arguments of the call; the first is the potential, whose memory nothing else refers to. It
                becomes the result, as the caller expects.
            kwargs: the others.
        """
        z: Tensor = args[0]
        activation = self._activations[func]
        held = z.new_empty(0)
        self._origins.exchange(z, held)  # before the graph holds the potential: what it holds cannot change places
        result = activation.out_of_place(func, (held, *args[1:]), kwargs)
        swap(z, result)
        result.data = z.detach()  # for hooks on saved tensors, which may hold this very tensor
        potential = self._ledger.add(held, activation.label, False, is_output=False)
        potential.results.append(self._graph.edge(z))
        self._origins.record_result(z, self._origins.of(held), potential)
        return z

    def _overwrite_view(self, func: TorchFunction, z: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Calls a nonlinearity on a copy of the view that it is to overwrite, which then receives the result.

        Overwriting a view rebuilds the graph of its base without a node for the view; the copy has one.

        Args:
            func: the nonlinearity.
            z: the potential, a view.
            args: positional arguments of the call.
            kwargs: the others.
        """
        copied = z.clone()
        self._origins.copy(z, copied)
        self._checkpoints.replace_argument(copied)
        potential = self._ledger.add(copied, self._activations[func].label, True, is_output=False)
        result = func(copied, *args[1:], **{key: value for key, value in kwargs.items() if key != "input"})
        z.copy_(result)
        # What goes on from the view goes on from its base, too, of which the graph knows the values before.
        potential.results.extend([self._graph.edge(result), self._graph.edge(z)])
        self._origins.record_result(z, self._origins.of(copied), potential)
        return z
