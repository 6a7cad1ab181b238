"""Calls of functions that are no nonlinearities by themselves: tensors are followed through them.

Such functions still make layers: activations are written out in them, and weights are used outside of every module.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Generic

from torch import Tensor

from lightning_psp.capture.frames import Frames
from lightning_psp.capture.functions import (
    LOGARITHMS,
    Handler,
    Role,
    TorchFunction,
    is_masking,
    name_of,
    overwriting,
    roles,
)
from lightning_psp.capture.ledger import Ledger
from lightning_psp.capture.origin import Kept
from lightning_psp.capture.origins import Origins
from lightning_psp.capture.outputs import Call, OutputFinder
from lightning_psp.capture.pointwise import Pointwise
from lightning_psp.capture.provenance import Provenance
from lightning_psp.capture.settlement import Settlement
from lightning_psp.capture.shadow import Graph
from lightning_psp.capture.witness import Witness, is_suspicious
from lightning_psp.capture.written_activations import WrittenActivations


class FollowedCalls(Generic[Kept]):
    """Notes what each function does with the tensors that it is given, and what that shows of layers.

    Args:
        provenance: follows tensors through functions of the table.
        pointwise: follows them through functions value by value.
        written: takes what is computed between two tensors for an activation.
        witness: is told of what may be an activation that nobody sees.
        settlement: keeps outputs that are overwritten.
        outputs: is told of calls of the network.
        ledger: the potentials.
        frames: the running modules.
        origins: what is known of tensors.
        graph: the graph in which they are.
        note_logarithm: is told of logarithms.
    """

    def __init__(
        self,
        *,
        provenance: Provenance,
        pointwise: Pointwise,
        written: WrittenActivations[Kept],
        witness: Witness,
        settlement: Settlement[Kept],
        outputs: OutputFinder[Kept],
        ledger: Ledger[Kept],
        frames: Frames,
        origins: Origins,
        graph: Graph,
        note_logarithm: Callable[[Tensor], None],
    ) -> None:
        self._provenance = provenance
        self._pointwise = pointwise
        self._written = written
        self._witness = witness
        self._settlement = settlement
        self._outputs = outputs
        self._ledger = ledger
        self._frames = frames
        self._origins = origins
        self._graph = graph
        self._note_logarithm = note_logarithm
        self._roles = _roles()

    def handlers(self) -> dict[TorchFunction, Handler]:
        """The functions in question, and what to do with a call of them."""
        by_role = {
            **self._provenance.handlers(),
            Role.ARITHMETIC: self._compute,
            Role.POINTWISE: self._compute,
            Role.WEIGHING: self._weigh,
        }
        handlers: dict[TorchFunction, Handler] = {function: by_role[role] for function, role in roles().items()}
        handlers.update(dict.fromkeys(overwriting(), self._overwrite))
        return handlers

    def _compute(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        role = self._roles[func]
        assert role is not None
        join, note = self._pointwise.compute(func, role, args, kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            argument = self._origins.argument(args)
            note(result)
            if func in LOGARITHMS:
                self._note_logarithm(result)
            may_be_unseen = is_suspicious(func, args) and result.grad_fn is not None and result.ndim > 0
            if argument is not None and self._ledger.in_call and may_be_unseen:
                place, edge = self._frames.host(name_of(func)), self._graph.edge(result)
                self._witness.note_suspect(func, place, argument, self._origins.of(result), edge)
            if join is not None and not self._frames.suppressed:
                self._written.close(join, result, name_of(func))
        else:
            self._provenance.note_other(args, result)
        return result

    def _overwrite(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        role = self._roles[func]
        if role is Role.ARITHMETIC and not kwargs and not any(map(self._origins.known, args)):
            return func(*args)  # a counter of steps, such as that of each batch norm
        join, note = self._pointwise.overwrite(role, func, args, kwargs)
        label = name_of(func)
        is_seen = not self._frames.suppressed
        overwritten = self._origins.find(args[0]) if args else None
        is_taken = overwritten is not None and is_seen and self._written.overwrite(overwritten, label, join)
        if overwritten is not None and not is_taken:
            stays = (
                is_masking(func, args)
                or self._pointwise.gives_multiple(func, role, args, kwargs)
                or self._pointwise.whole_of_placed(func, role, args, kwargs) is not None
            )
            self._settlement.save_overwritten(overwritten, args[0], stays)
        result = func(*args, **kwargs)
        written = args[0] if result is None and args else result  # of an assignment to a part
        if isinstance(written, Tensor):
            note(written)
            if join is not None and is_seen:
                self._written.close(join, written, label)
        return result

    def _weigh(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result, has_weights = self._provenance.weigh(func, args, kwargs)
        origin = self._origins.find(result) if isinstance(result, Tensor) else None
        if origin is None or self._frames.suppressed or not self._ledger.counts():
            return result
        self._witness.note_depth(origin.weighings)  # of weights that functions of parameters make, too
        if has_weights and origin.path is not None:
            self._witness.weights.add(origin.path)
            if not self._ledger.in_call:
                # A weight that is used outside of every module is a call of the network.
                edge = self._graph.edge(result)
                target = self._settlement.target_of(edge, result, origin.path, False)
                self._outputs.calls.append(Call([target], [edge], True))
        return result


@cache
def _roles() -> dict[TorchFunction, Role | None]:
    return {**overwriting(), **roles()}
