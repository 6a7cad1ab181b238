"""Functions that compute whole layers in one kernel: recurrent layers, whose steps are run again, and others."""

from __future__ import annotations

from typing import Any, Generic

from lightning_psp.capture.frames import Frames
from lightning_psp.capture.functions import Handler, TorchFunction
from lightning_psp.capture.ledger import Ledger
from lightning_psp.capture.nonlinearities import Nonlinearities
from lightning_psp.capture.origin import Kept, tensors_in
from lightning_psp.capture.origins import Origins
from lightning_psp.capture.recurrent import RECURRENT_MODULES, attach, parse_call
from lightning_psp.capture.shadow import Graph


class FusedCalls(Generic[Kept]):
    """Finds the potentials inside of recurrent kernels, and raises an error for kernels that show none.

    Args:
        known: the functions in question.
        ledger: takes the potentials.
        frames: the running modules.
        origins: what is known of tensors.
        graph: the graph in which they are.
    """

    def __init__(
        self, known: Nonlinearities, *, ledger: Ledger[Kept], frames: Frames, origins: Origins, graph: Graph
    ) -> None:
        self.left_out: dict[str, None] = {}  # modules with kernels that show nothing, by the user's selection
        self.attaches = False  # whether potentials are to lie on the path from their result to a loss
        self._known = known
        self._ledger = ledger
        self._frames = frames
        self._origins = origins
        self._graph = graph

    def handlers(self) -> dict[TorchFunction, Handler]:
        """The functions in question, and what to do with a call of them."""
        handlers: dict[TorchFunction, Handler] = dict.fromkeys(self._known.recurrent, self._recurrent)
        handlers.update(dict.fromkeys(self._known.fused, self._opaque))
        return handlers

    def _recurrent(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = self._known.recurrent[func]
        call = parse_call(func, name, args, kwargs)
        if call is None:
            return self._opaque(func, args, kwargs)
        # `detach`, because a parameter is an input like any other here.
        if self._frames.suppressed or not self._ledger.is_potential(call.input.detach()):
            return func(*args, **kwargs)
        inside = self._frames.running[-1] if self._frames.running else None
        is_module = inside is not None and isinstance(inside.module, RECURRENT_MODULES)
        path = (inside.path if inside is not None and is_module else None) or self._frames.host(name)
        expected = self._ledger.expect_gates(call.layers(path))
        chosen = [self._ledger.selects(potential.layer) for potential in expected]
        result, gates = call.run(chosen) if any(chosen) else (func(*args, **kwargs), [])
        self._ledger.take_gates(expected, gates)
        if self.attaches:
            result = attach(result, [z for z in gates if z is not None])
        for tensor in tensors_in(result):
            self._origins.renew(tensor).unit_dim = -1
            self._origins.of(tensor).is_made = True
            for potential in expected:
                potential.results.append(self._graph.edge(tensor))
        return result

    def _opaque(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._ledger.counts():
            name = self._known.fused.get(func) or self._known.recurrent[func]
            path = next((frame.path for frame in reversed(self._frames.running) if frame.path), name)
            if self._ledger.selects(path):
                raise NotImplementedError(
                    f"The potentials of {path!r} are computed inside the fused function `{name}` and cannot be seen."
                    f" Leave it out with exclude=({path!r},), or write it with separate linear maps and nonlinearities."
                )
            self.left_out[path] = None
        return func(*args, **kwargs)
