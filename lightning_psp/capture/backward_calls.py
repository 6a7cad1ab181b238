"""Calls for gradients while a step runs: backward passes, and derivatives that may become a part of the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic

import torch
from torch import Tensor

from lightning_psp.capture.functions import Handler, TorchFunction
from lightning_psp.capture.graph import edges_below
from lightning_psp.capture.ledger import Ledger
from lightning_psp.capture.origin import Kept, tensors_in
from lightning_psp.capture.outputs import OutputFinder
from lightning_psp.capture.shadow import Graph


class BackwardCalls(Generic[Kept]):
    """Notes from which losses gradients are asked for, and which potentials are differentiated by.

    Args:
        ledger: the potentials.
        outputs: is told of losses.
        graph: the graph in which tensors are.
    """

    def __init__(self, ledger: Ledger[Kept], outputs: OutputFinder[Kept], graph: Graph) -> None:
        # Called before a backward pass, with whether it is for some parameters alone.
        self.on_backward: Callable[[bool], None] | None = None
        self.is_differentiating = False  # whether `torch.autograd.grad` is running
        self._ledger = ledger
        self._outputs = outputs
        self._graph = graph

    def handlers(self) -> dict[TorchFunction, Handler]:
        """The functions in question, and what to do with a call of them."""
        return {Tensor.backward: self._backward, torch.autograd.grad: self._differentiate}

    def _backward(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._outputs.note_backward(self._graph.edge(args[0]))
        if self.on_backward is not None:
            self.on_backward((args[4] if len(args) > 4 else kwargs.get("inputs")) is not None)
        return func(*args, **kwargs)

    def _differentiate(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before, self.is_differentiating = self.is_differentiating, True
        try:
            gradients = func(*args, **kwargs)
        finally:
            self.is_differentiating = before
        if any(gradient.requires_grad for gradient in tensors_in(gradients)):
            # A loss made of them depends on potentials that it may not reach through their nonlinearity's result.
            for differentiated in tensors_in(args[0] if args else kwargs["outputs"]):
                edges = edges_below((differentiated.grad_fn, differentiated.output_nr))
                for potential in self._ledger.potentials:
                    potential.is_differentiated |= not edges.isdisjoint(potential.results)
        return gradients
