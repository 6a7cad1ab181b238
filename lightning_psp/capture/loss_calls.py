"""Calls that tell of an output layer: losses, their softmax, and the softmax of a network."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, Generic

import torch
from torch import Tensor

from lightning_psp.capture.frames import Frames
from lightning_psp.capture.functions import Handler, TorchFunction, all_forms_of, name_of
from lightning_psp.capture.ledger import Ledger
from lightning_psp.capture.nonlinearities import Activation, Nonlinearities
from lightning_psp.capture.origin import Kept, Origin, Potential, Softmax, Source
from lightning_psp.capture.origins import Origins
from lightning_psp.capture.outputs import OutputFinder, Target
from lightning_psp.capture.settlement import Settlement
from lightning_psp.capture.shadow import Graph

_SOFTMAX = all_forms_of("softmax")
_LOG_SOFTMAX = all_forms_of("log_softmax")
_NORMALISING = all_forms_of("logsumexp")


@lru_cache(maxsize=16)
def saving_functions(known: Nonlinearities) -> dict[TorchFunction, Activation | None]:
    """The functions whose first argument may be a potential, and for nonlinearities how they are called."""
    losses = (
        *_SOFTMAX,
        *_LOG_SOFTMAX,
        *known.output,
        *_NORMALISING,
        *known.direct_losses,
        *known.probability_losses,
    )
    return {**dict.fromkeys(losses), **known.hidden}


class LossCalls(Generic[Kept]):
    """Takes what enters the softmax or sigmoid of a loss for logits.

    Args:
        known: the functions of losses.
        ledger: takes the potentials.
        settlement: finds of which tensor one stands for.
        outputs: is told of what enters losses inside the network.
        frames: the running modules.
        origins: what is known of tensors.
        graph: the graph in which they are.
        note_other: notes what follows for the result of a function of which nothing else is known.
    """

    def __init__(
        self,
        known: Nonlinearities,
        *,
        ledger: Ledger[Kept],
        settlement: Settlement[Kept],
        outputs: OutputFinder[Kept],
        frames: Frames,
        origins: Origins,
        graph: Graph,
        note_other: Callable[[tuple[Any, ...], Any], None],
    ) -> None:
        self._known = known
        self._ledger = ledger
        self._settlement = settlement
        self._outputs = outputs
        self._frames = frames
        self._origins = origins
        self._graph = graph
        self._note_other = note_other
        self.start()

    def start(self) -> None:
        """Forgets everything."""
        self._softmaxes: weakref.WeakSet[Softmax] = weakref.WeakSet()  # of the running call of the network

    def end_call(self) -> None:
        """The network has returned: a softmax that it took belongs to its output, or is let go of."""
        self._let_go_of_attention()
        self._softmaxes.clear()

    def _let_go_of_attention(self) -> None:
        for softmax in [*self._softmaxes]:
            if softmax.weighs:
                softmax.entering = None
                self._softmaxes.discard(softmax)

    def handlers(self) -> dict[TorchFunction, Handler]:
        """The functions in question, and what to do with a call of them."""
        known = self._known
        handlers: dict[TorchFunction, Handler] = dict.fromkeys(_SOFTMAX, self._softmax)
        handlers.update(dict.fromkeys(_LOG_SOFTMAX, self._log_softmax))
        handlers.update(dict.fromkeys(known.output, self._loss))
        handlers.update(dict.fromkeys(_NORMALISING, self._normalise))
        handlers.update(dict.fromkeys(known.direct_losses, self._direct_loss))
        handlers.update(dict.fromkeys(known.probability_losses, self._probability_loss))
        return handlers

    def _loss(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._run_loss(func, args, kwargs, self._known.output.get(func, "log_softmax"))

    def _normalise(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = self._run_other(func, args, kwargs)
        z = args[0] if args else kwargs.get("input")
        if isinstance(z, Tensor) and self._is_of_network(z):
            origin = self._origins.of(z)
            self._origins.of(result).normalises = origin.values
            if not self._ledger.in_call and self._ledger.counts():
                self._outputs.normalisers[self._graph.edge(result)] = origin.weighings
        return result

    def _run_loss(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any], label: str) -> Any:
        z = args[0] if args else kwargs.get("input")
        entering = self._enter_loss(z, label) if isinstance(z, Tensor) else []
        result = self._run_other(func, args, kwargs)
        for potential in entering:
            potential.results.extend(self._graph.edges(result))
        return result

    def _run_other(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        self._note_other((args, kwargs), result)
        return result

    def _enter_loss(self, z: Tensor, label: str) -> list[Potential[Kept]]:
        """Takes the tensor that enters a loss's own softmax or sigmoid for the output layer."""
        # A loss that is mapped over the samples of what a network returned shows no weights.
        if self._frames.suppressed or self._ledger.is_of_no_network(z) or not self._ledger.is_potential(z):
            return []
        origin = self._origins.of(z)
        root = self._origins.root(origin)
        if root.potential is not None:  # logits that a nonlinearity bounds
            return self._take(root.potential)
        if root.entering is not None and root.entering is not z:  # logarithms of probabilities
            return self._enter_loss(root.entering, label)
        top = self._origins.top(root)
        if top.reference() is None and not top.values.potentials:
            top = self._origins.top(origin)  # of which something was overwritten since
        values, whole = top.values, top.reference()
        if not values.potentials and (found := self._enter_each(top, label)):
            return found
        if not values.potentials:
            if whole is None or not self._ledger.is_potential(whole):
                values, whole = origin.values, z
            if not values.potentials:
                self._ledger.add(whole, label, in_place=False, is_output=True)
        for potential in values.potentials:
            potential.is_output = potential.enters_loss = True
            potential.edge = self._graph.edge(z if whole is None else whole)
        return values.potentials

    def _enter_each(self, joined: Origin, label: str) -> list[Potential[Kept]]:
        """Takes the passes of which a tensor is the concatenation for the output layer, unless one was overwritten."""
        passes = [tensor for one in joined.passes if (tensor := one.reference()) is not None]
        if len(passes) < len(joined.passes):
            return []
        return [potential for one in passes for potential in self._enter_loss(one, label)]

    def _take(self, potential: Potential[Kept]) -> list[Potential[Kept]]:
        joined = None if potential.origin is None else self._origins.top(potential.origin)
        found = [] if joined is None else self._enter_each(joined, potential.label)
        if found:
            for one in found:
                one.results.extend(potential.results)
            self._ledger.drop(potential)
            return found
        whole = self._settlement.whole_potential(potential)
        whole.is_output = whole.enters_loss = True
        return [whole]

    def _is_of_network(self, z: Tensor) -> bool:
        origin = self._origins.find(z)
        return origin is not None and origin.is_made

    def _direct_loss(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._ledger.in_call and self._ledger.counts():
            for tensor in [*args, *kwargs.values()][:2]:
                if isinstance(tensor, Tensor) and self._is_of_network(tensor):
                    self._outputs.inputs_of_losses.extend(self._targets(func, tensor))
        return self._run_other(func, args, kwargs)

    def _targets(self, func: TorchFunction, tensor: Tensor) -> list[Target[Kept]]:
        """What enters a loss of the network's own, if it may be an output layer."""
        target = self._settlement.target(tensor, None)
        if target is None:
            return []
        return [replace(target, path=self._place_of(target, name_of(func)), may_be_term=False)]

    def _place_of(self, target: Target[Kept], label: str) -> str:
        """The name of what enters a loss of the network's own, where no module with weights gives it one."""
        origin = target.origin
        if origin is None or (origin.source is not None and origin.source.name is not None):
            return ""
        if origin.giver is None:
            place = Source(None)
            self._frames.name_place(place, label)
            origin.giver = place.name
        return origin.giver or ""

    def _log_softmax(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Outside the network it belongs to the loss; inside, its result must reach the output or a loss first.
        handler = self._softmax if self._ledger.in_call else self._loss
        return handler(func, args, kwargs)

    def note_logarithm(self, result: Tensor) -> None:
        """Notes the logarithm of a tensor, which may be a softmax of the network: its loss may be made of that."""
        softmax = self._origins.root(self._origins.of(result)).softmax
        if softmax is not None and softmax.entering is not None and self._ledger.in_call:
            edges = [self._graph.edge(result)]
            targets = self._targets(torch.log_softmax, softmax.entering)
            self._outputs.logarithms.extend((softmax, replace(target, edges=edges)) for target in targets)

    def _probability_loss(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        origin = self._origins.find(args[0] if args else kwargs.get("input"))
        result = self._run_other(func, args, kwargs)
        if origin is None:
            return result
        if origin.potential is not None:
            self._take(origin.potential)
        elif origin.entering is not None:
            for potential in self._enter_loss(origin.entering, "log_softmax"):
                potential.results.extend(self._graph.edges(result))
        return result

    def _softmax(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = self._run_other(func, args, kwargs)
        z = args[0] if args else kwargs.get("input")
        if isinstance(z, Tensor) and not self._ledger.is_of_no_network(z) and self._ledger.is_potential(z):
            # Whether these are probabilities of the output or weights of attention shows later. Of the latter, only the
            # last can be the network's output as well: the tensors of all others are let go.
            softmax = self._origins.of(result).softmax = Softmax(z)
            if func in _SOFTMAX:
                self._let_go_of_attention()
                self._softmaxes.add(softmax)
            else:
                edges = [self._graph.edge(result)]
                self._outputs.log_softmaxes.extend(replace(target, edges=edges) for target in self._targets(func, z))
        return result
