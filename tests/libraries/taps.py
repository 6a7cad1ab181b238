"""The gradient of a loss plus λR from a list of layers, by plain hooks: the yardstick for libraries' networks.

A layer is a name and the places where its potential is read: the result of a module (`out`), what enters a module
(`into`), or what enters or leaves the n-th call of a function in a module's own code (`call`, `result`). Every place
hands a copy on, so that what happens to the potential's memory later does not matter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as all_modules

from tests.libraries.unrolled import unroll

Turns = int | Callable[[int, tuple[Any, ...], dict[str, Any]], bool]  # or which, by its turn and arguments
Part = Callable[[Any], Any]  # picks the potential, or several, out of a result


def every(turn: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return True


@dataclass(frozen=True)
class Tap:
    module: str
    kind: str  # "out", "into", "call", "result" of a call, or "gates" of a recurrent layer
    part: Part | None = None
    function: str = ""  # of a call
    turns: Turns = 0  # which calls: of the module's own of that function in one run, or of a module entered

    def takes(self, turn: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call is meant."""
        return self.turns(turn, args, kwargs) if callable(self.turns) else turn == self.turns


@dataclass(frozen=True)
class Layer:
    name: str
    taps: tuple[Tap, ...]
    live: bool = True  # on the path from trained parameters to the loss
    named: bool = True  # whether the definition says its name

    def under(self, prefix: str) -> Layer:
        """The same layer of a network that is a part of another."""
        return Layer(
            prefix + self.name,
            tuple(replace(t, module=(prefix + t.module).rstrip(".")) for t in self.taps),
            self.live,
            self.named,
        )


def out(module: str, part: Part | None = None, *, name: str | None = None, live: bool = True) -> Layer:
    """What a module gives enters a nonlinearity or the loss."""
    return Layer(name or module, (Tap(module, "out", part),), live)


def into(module: str, turns: Turns = every, *, name: str | None = None, live: bool = True) -> Layer:
    """What enters a module, which is the nonlinearity, in all of its calls or in some."""
    return Layer(name or module, (Tap(module, "into", None, "", turns),), live)


def call(module: str, function: str, turns: Turns = 0, *, name: str | None = None, live: bool = True) -> Layer:
    """What enters a function called in the module's own `forward`, or in a module made there."""
    path = f"{module}.{function}" if module else function
    return Layer(name or path, (Tap(module, "call", None, function, turns),), live)


def result(module: str, function: str, turns: Turns = 0, *, name: str, named: bool = True) -> Layer:
    """What a function called in the module's own `forward` gives."""
    return Layer(name, (Tap(module, "result", None, function, turns),), named=named)


def gates(module: str, levels: int = 1) -> list[Layer]:
    """The gates' pre-activations of a recurrent layer of one direction, level by level."""
    names = [module] if levels == 1 else [f"{module}.l{level}" for level in range(levels)]
    return [Layer(name, (Tap(module, "gates", turns=level),)) for level, name in enumerate(names)]


def layer(name: str, *parts: Layer, live: bool = True) -> Layer:
    """Several places that are passes or parts of one layer."""
    return Layer(name, tuple(tap for part in parts for tap in part.taps), live)


def outs(*modules: str) -> list[Layer]:
    """A layer for each module; ``{2}`` stands for 0, 1."""
    return [out(module) for pattern in modules for module in expand(pattern)]


def expand(pattern: str) -> list[str]:
    """`a.{2}.b` is `a.0.b`, `a.1.b`; several braces count in order, the last fastest."""
    head, brace, rest = pattern.partition("{")
    if not brace:
        return [pattern]
    number, _, tail = rest.partition("}")
    return [f"{head}{index}{end}" for index in range(int(number)) for end in expand(tail)]


def chunk(index: int, of: int = 2, dim: int = -1) -> Part:
    """One of several equal parts."""
    return lambda z: z.chunk(of, dim)[index]


def at(index: Any) -> Part:
    """An entry of a result."""
    return lambda result: result[index]


@dataclass(frozen=True)
class Reference:
    """A loss and its gradients by parameter name, and the penalty's."""

    values: dict[str, float]  # ⟨z²⟩ by layer
    loss: dict[str, Tensor]
    penalty: dict[str, Tensor]
    not_live: frozenset[str]

    def balanced_lam(self) -> float:
        """The λ at which both gradients are of one length."""
        penalty = norm(self.penalty)
        return norm(self.loss) / penalty if penalty else 1.0

    def error(self, gradients: dict[str, Tensor], lam: float) -> float:
        """How far gradients lie from those of loss + λR, relative to the two parts."""
        if gradients.keys() != self.loss.keys():
            return float("inf")
        expected = {k: self.loss[k] + lam * self.penalty[k] for k in self.loss}
        off = norm({k: gradients[k] - expected[k] for k in expected})
        return off / (norm(self.loss) + lam * norm(self.penalty))


def norm(gradients: dict[str, Tensor]) -> float:
    return float(sum(g.double().square().sum() for g in gradients.values())) ** 0.5


def reference(module: nn.Module, step: Callable[[], Tensor], layers: Iterable[Layer], live_only: bool) -> Reference:
    """The gradients of a step's loss and of R = (1/L) Σ mean(z²).

    Args:
        module: the network, or the LightningModule.
        step: computes the loss.
        layers: those of the definition.
        live_only: whether layers off the loss's path are left out of R, as a callback must.
    """
    layers = list(layers)
    with _recorded(module, layers) as found:
        loss = step()
    missing = [one.name for one in layers if not found[one.name]]
    assert not missing, f"the row's layers were not run: {missing}"
    parameters = {k: p for k, p in module.named_parameters() if p.requires_grad}
    needing = {id(z): z for entries in found.values() for z, _ in entries if z.requires_grad}
    arriving = torch.autograd.grad(loss, list(needing.values()), retain_graph=True, allow_unused=True)
    reached = {key for key, g in zip(needing, arriving, strict=True) if g is not None}

    values, terms, not_live = {}, [], set()
    for name, entries in found.items():
        parts = [(z, part(z) if part else z) for z, part in entries]
        flat = [(z, one) for z, some in parts for one in (some if isinstance(some, tuple | list) else [some])]
        values[name] = _mean_square([one for _, one in flat]).item()
        live = [one for z, one in flat if id(z) in reached]
        if not live:
            not_live.add(name)
        counted = live if live_only else [one for z, one in flat if z.requires_grad]
        if counted:
            terms.append(_mean_square(counted))
    penalty = torch.stack(terms).mean()
    return Reference(
        values, _gradients(loss, parameters, retain=True), _gradients(penalty, parameters), frozenset(not_live)
    )


def _mean_square(passes: list[Tensor]) -> Tensor:
    return sum(z.square().sum() for z in passes) / sum(z.numel() for z in passes)


def _gradients(scalar: Tensor, parameters: dict[str, Tensor], retain: bool = False) -> dict[str, Tensor]:
    found = torch.autograd.grad(scalar, list(parameters.values()), retain_graph=retain, allow_unused=True)
    return {k: torch.zeros_like(p) if g is None else g for (k, p), g in zip(parameters.items(), found, strict=True)}


@contextlib.contextmanager
def _recorded(module: nn.Module, layers: list[Layer]) -> Iterator[dict[str, list[tuple[Tensor, Part | None]]]]:
    """Layer name to what its taps read: the tensor, and the part of it that is the potential."""
    found: dict[str, list[tuple[Tensor, Part | None]]] = {one.name: [] for one in layers}
    modules = dict(module.named_modules())
    known = {id(one) for one in modules.values()}
    calls: dict[tuple[int, str], list[tuple[str, Tap]]] = {}
    by_output: dict[int, list[tuple[str, Tap]]] = {}
    by_input: dict[int, list[tuple[str, Tap]]] = {}
    recurrent: dict[int, list[tuple[str, Tap]]] = {}
    for one in layers:
        for tap in one.taps:
            assert tap.module in modules, f"no module {tap.module!r}; there are {list(modules)}"
            owner = id(modules[tap.module])
            if tap.kind in ("call", "result"):
                calls.setdefault((owner, tap.function), []).append((one.name, tap))
            else:
                by = {"out": by_output, "into": by_input, "gates": recurrent}[tap.kind]
                by.setdefault(owner, []).append((one.name, tap))
    running: list[tuple[int, dict[str, int]]] = []
    entered: dict[int, int] = {}

    def keep(taps: list[tuple[str, Tap]], value: Any) -> Any:
        copied: dict[int, Tensor] = {}
        for name, tap in taps:
            picked = tap.part(value) if tap.part is not None and not isinstance(value, Tensor) else value
            for tensor in picked if isinstance(picked, tuple | list) else [picked]:
                found[name].append((tensor, tap.part if isinstance(value, Tensor) else None))
                copied[id(tensor)] = tensor.clone()
        return _replaced(value, copied)

    def before(called: nn.Module, args: Any) -> Any:
        if id(called) in known:
            running.append((id(called), {}))
        entered[id(called)] = turn = entered.get(id(called), -1) + 1
        meant = [(name, tap) for name, tap in by_input.get(id(called), []) if tap.takes(turn, args, {})]
        return (keep(meant, args[0]), *args[1:]) if meant else None

    def after(called: nn.Module, args: Any, kwargs: dict[str, Any], result: Any) -> Any:
        if id(called) in known:
            running.pop()
        if id(called) in recurrent:  # the layer written out takes its place
            written, levels = unroll(called, *args, **kwargs)
            for name, tap in recurrent[id(called)]:
                first, whole = levels[tap.turns]
                found[name].append((first, lambda _, whole=whole: whole))
            return written
        return keep(by_output[id(called)], result) if id(called) in by_output else None

    inside = [False]

    def watched(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if inside[0] or not running:
                return function(*args, **kwargs)
            owner, turns = running[-1]
            turn = turns.get(name, 0)
            turns[name] = turn + 1
            meant = [
                (layer_name, tap) for layer_name, tap in calls.get((owner, name), []) if tap.takes(turn, args, kwargs)
            ]
            for layer_name, tap in meant:
                if tap.kind == "call":
                    z, *others = args or (kwargs.pop("input"),)
                    found[layer_name].append((z, tap.part))
                    args = (z.clone(), *others)
            inside[0] = True
            try:
                given = function(*args, **kwargs)
            finally:
                inside[0] = False
            for layer_name, tap in meant:
                if tap.kind == "result":
                    found[layer_name].append((given, tap.part))
                    given = given.clone()
            return given

        return run

    with contextlib.ExitStack() as stack:
        for name in {function for _, function in calls}:
            for space in (F, torch, Tensor):
                if hasattr(space, name):
                    stack.enter_context(patch.object(space, name, watched(getattr(space, name), name)))
        pre = all_modules.register_module_forward_pre_hook(before)
        post = all_modules.register_module_forward_hook(after, with_kwargs=True)
        stack.callback(pre.remove)
        stack.callback(post.remove)
        yield found


def _replaced(value: Any, copies: dict[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return copies.get(id(value), value)
    if isinstance(value, dict):
        made = {k: _replaced(v, copies) for k, v in value.items()}
        return made if type(value) is dict else type(value)(**made)
    if isinstance(value, tuple | list):
        made = [_replaced(v, copies) for v in value]
        return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
    return value
