"""Functions that compute whole layers in one kernel: recurrent layers, whose steps are run again, and others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic

from lightning_psp.capture.functions import TorchFunction
from lightning_psp.capture.nonlinearities import Nonlinearities
from lightning_psp.capture.origin import Kept, Potential, tensors_in
from lightning_psp.capture.provenance import Handler
from lightning_psp.capture.recurrent import RECURRENT_MODULES, attach, parse_call

if TYPE_CHECKING:
    from lightning_psp.capture.mode import Capture


class FusedCalls(Generic[Kept]):
    """Finds the potentials inside of recurrent kernels, and raises an error for kernels that show none.

    Args:
        capture: the capture that sees the calls.
    """

    def __init__(self, capture: Capture[Kept]) -> None:
        self._capture = capture
        self.left_out: dict[str, None] = {}  # modules with kernels that show nothing, by the user's selection

    def handlers(self, known: Nonlinearities) -> dict[TorchFunction, Handler]:
        """The functions in question, and what to do with a call of them."""
        handlers: dict[TorchFunction, Handler] = dict.fromkeys(known.recurrent, self._recurrent)
        handlers.update(dict.fromkeys(known.fused, self._opaque))
        return handlers

    def _recurrent(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        capture = self._capture
        name = capture.nonlinearities.recurrent[func]
        call = parse_call(func, name, args, kwargs)
        if call is None:
            return self._opaque(func, args, kwargs)
        # `detach`, because a parameter is an input like any other here.
        if capture.suppressed or not capture.ledger.is_potential(call.input.detach()):
            return func(*args, **kwargs)
        inside = capture.frames.running[-1] if capture.frames.running else None
        is_module = inside is not None and isinstance(inside.module, RECURRENT_MODULES)
        path = (inside.path if inside is not None and is_module else None) or capture.frames.host(name)
        evaluation = object()
        capture.ledger.recurrent.update(call.layers(path))
        added: list[Potential[Kept]] = [
            Potential(layer, evaluation, -1, is_output=False) for layer in call.layers(path)
        ]
        chosen = [capture.ledger.selection.selects(potential.layer) for potential in added]
        result, potentials = call.run(chosen) if any(chosen) else (func(*args, **kwargs), [])
        for potential, z in zip(added, potentials, strict=False):
            if z is not None:
                potential.units = z.shape[-1]
                potential.kept = capture.ledger.keep(z, potential, False)
        if capture.penalises:
            result = attach(result, [z for z in potentials if z is not None])
        for tensor in tensors_in(result):
            capture.origins.renew(tensor).unit_dim = -1
            capture.origins.of(tensor).is_made = True
            for potential in added:
                potential.results.append(capture.graph.edge(tensor))
        capture.ledger.potentials.extend(added)
        return result

    def _opaque(self, func: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        capture = self._capture
        if capture.ledger.counts():
            name = capture.nonlinearities.fused.get(func) or capture.nonlinearities.recurrent[func]
            path = next((frame.path for frame in reversed(capture.frames.running) if frame.path), name)
            if capture.ledger.selection.selects(path):
                raise NotImplementedError(
                    f"The potentials of {path!r} are computed inside the fused function `{name}` and cannot be seen."
                    f" Leave it out with exclude=({path!r},), or write it with separate linear maps and nonlinearities."
                )
            self.left_out[path] = None
        return func(*args, **kwargs)
