"""Nonlinearities that overwrite their potential, which the backward pass still has to find."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_psp.capture.functions import TorchFunction
from lightning_psp.capture.swapping import swap

if TYPE_CHECKING:
    from lightning_psp.capture.mode import Capture


def replace_memory(capture: Capture[Any], func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Calls a nonlinearity so that it writes to new memory, and keeps the potential without a copy of it.

    Args:
        capture: is told of the potential and its result.
        func: the nonlinearity.
        args: positional arguments of the call; the first is the potential, whose memory nothing else refers to. It
            becomes the result, as the caller expects.
        kwargs: the others.
    """
    z: Tensor = args[0]
    activation = capture.nonlinearities.hidden[func]
    held = z.new_empty(0)
    capture.origins.exchange(z, held)  # before the graph holds the potential: what it holds cannot change places
    result = activation.out_of_place(func, (held, *args[1:]), kwargs)
    swap(z, result)
    potential = capture.ledger.add(held, activation.label, False, is_output=False)
    potential.results.append(capture.graph.edge(z))
    capture.origins.record_result(z, capture.origins.of(held), potential)
    return z


def overwrite_view(
    capture: Capture[Any], func: TorchFunction, z: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """Calls a nonlinearity on a copy of the view that it is to overwrite, which then receives the result.

    Overwriting a view rebuilds the graph of its base without a node for the view; the copy has one.

    Args:
        capture: is told of the potential and its result.
        func: the nonlinearity.
        z: the potential, a view.
        args: positional arguments of the call.
        kwargs: the others.
    """
    copied = z.clone()
    capture.origins.copy(z, copied)
    capture.checkpoints.argument = copied
    potential = capture.ledger.add(copied, capture.nonlinearities.hidden[func].label, True, is_output=False)
    result = func(copied, *args[1:], **{key: value for key, value in kwargs.items() if key != "input"})
    potential.results.append(capture.graph.edge(result))
    z.copy_(result)
    capture.origins.record_result(z, capture.origins.of(copied), potential)
    return z
