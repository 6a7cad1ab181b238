"""What the layers of a random program are, by the definitions, from what its generator knows of each value."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tests.support.random_networks.program import LOSSES, SOFTMAX, Program, Statement

DATA, WEIGHED, ACTIVATED, GATED = "data", "weighed", "activated", "gated"
_AFFINE = ("nn.Linear", "nn.Conv", "nn.Embedding")


class UnclearError(Exception):
    """The definitions do not say what the layers of this program are."""


@dataclass(frozen=True)
class Known:
    """What is known of a value.

    Args:
        layer: that it is of: a module with weights, or the statement that made it.
        is_named: whether the definitions say the layer's name.
        made_of: what it was made of since the last weights.
        same: the value whose numbers it holds in another shape.
        line: the values that it is a function of, number by number or in another shape.
    """

    layer: str
    is_named: bool
    made_of: str
    same: int
    line: frozenset[int]


@dataclass
class Layer:
    """A layer's potentials, each with whether the loss reaches it from trained parameters."""

    is_named: bool
    passes: list[tuple[Tensor, bool]] = field(default_factory=list)


class Taps:
    """Hands copies of potentials on, which a program written with `taps` calls for."""

    def __init__(self) -> None:
        self.call = -1
        self.entered: list[tuple[int, int, Tensor]] = []  # call, statement and potential
        self.given: list[tuple[int, int, Tensor]] = []  # call, number of the output and output

    def start(self) -> None:
        self.call += 1

    def enter(self, target: int, z: Tensor) -> Tensor:
        self.entered.append((self.call, target, z.clone()))
        return self.entered[-1][-1]

    def leave(self, number: int, output: Tensor) -> Tensor:
        self.given.append((self.call, number, output.clone()))
        return self.given[-1][-1]


def out_of_place(program: Program) -> Program:
    """The same program where nothing is overwritten."""
    return replace(program, statements=[replace(statement, in_place=False) for statement in program.statements])


def explicit(program: Program) -> tuple[Any, Tensor, dict[str, Layer]]:
    """A network of the program, its loss, and its layers with what enters their nonlinearities.

    Args:
        program: one in which nothing is overwritten.

    Raises:
        UnclearError: if the definitions do not say what the layers are.
    """
    known = _known(program)
    taps = Taps()
    network = program.make_network(taps=taps)
    loss = program.make_loss()(network, program.batch())
    trained = [p for p in network.parameters() if p.requires_grad]
    layers: dict[str, Layer] = {}
    seen: dict[tuple[int, int], list[Tensor]] = {}

    def note(call: int, value: int, z: Tensor) -> None:
        if not program.calls[call]:
            return  # without gradient
        tensors = seen.setdefault((call, known[value].same), [])
        if not tensors:
            layer = layers.setdefault(known[value].layer, Layer(known[value].is_named))
            layer.passes.append((z, False))
        tensors.append(z)

    for call, target, z in taps.entered:
        source = program.statements[target - 1].sources[0]
        if known[source].made_of != GATED:
            note(call, source, z)
    softmaxes = {(term.call, term.output) for term in program.terms if LOSSES[term.kind][1] == SOFTMAX}
    for call, number, output in taps.given:
        is_reached = loss.requires_grad and _gradients(loss, [output])[0] is not None
        if number not in program.activated and (is_reached or (call, number) in softmaxes):
            note(call, program.outputs[number], output)
    alive = {id(tensors[0]): _is_alive(loss, tensors, trained) for tensors in seen.values()}
    for layer in layers.values():
        layer.passes = [(z, alive[id(z)]) for z, _ in layer.passes]
    return network, loss, layers


def _is_alive(loss: Tensor, tensors: list[Tensor], trained: list[Tensor]) -> bool:
    if not loss.requires_grad or not tensors[0].requires_grad:
        return False
    is_on_the_way = any(gradient is not None for gradient in _gradients(loss, tensors))
    return is_on_the_way and any(gradient is not None for gradient in _gradients(tensors[0].sum(), trained))


def _gradients(value: Tensor, of: list[Tensor]) -> tuple[Tensor | None, ...]:
    wanted = [tensor for tensor in of if tensor.requires_grad]
    return torch.autograd.grad(value, wanted, retain_graph=True, allow_unused=True) if wanted else (None,)


def _known(program: Program) -> list[Known]:
    """What is known of each value."""
    known = [Known("input", False, DATA, 0, frozenset([0]))]
    of_block = program.used_layers(*program.block)  # wherever else they are called
    inside = program.statements[slice(*program.block)]
    has_weights = any("Norm" in each or each.startswith(_AFFINE) for each in of_block.values())
    if len(inside) > 1 and not has_weights and any(statement.is_activation for statement in inside):
        raise UnclearError("a module without weights, which may be an activation as a whole")
    for target, statement in enumerate(program.statements, start=1):
        found = _of(program, statement, target, of_block, [known[source] for source in statement.sources])
        is_other_data = found.made_of == DATA and found.same == target  # which no weights tell apart, but places do
        known.append(replace(found, layer=f"?{target}") if is_other_data else found)
    made_before = {each.layer for each in known[: program.block[0] + 1] if not each.layer.startswith("block.")}
    if has_weights and any(known[value].layer in made_before for value in _given(program)):
        raise UnclearError("a module with weights hands on what was made outside of it")
    return known


def _given(program: Program) -> list[int]:
    """The values that the block returns."""
    start, end = program.block
    later = {source for statement in program.statements[end:] for source in statement.sources} | set(program.outputs)
    return [value for value in range(start + 1, end + 1) if value in later]


def _of(program: Program, statement: Statement, target: int, of_block: Container[str], sources: list[Known]) -> Known:
    first, own = sources[0], frozenset([target])
    place = Known(f"?{target}", False, WEIGHED, target, own)
    code = statement.code
    constructors = [program.layers[name] for name in statement.layers]
    if statement.without_gradient or statement.is_activation:
        return replace(place, made_of=ACTIVATED, line=own if "glu" in code else own | first.line)
    if constructors and "Pool" not in constructors[0]:
        (layer,) = statement.layers
        return Known(f"block.{layer}" if layer in of_block else layer, True, WEIGHED, target, own)
    if statement.view is not None and "dropout" not in code:
        holds_all = not any(kind in code for kind in ("narrow", "split", "[:"))
        same = first.same if holds_all else target
        return replace(first, same=same, line=own | first.line)
    if "dropout" in code or constructors or ".mean(" in code:
        return replace(first, same=target, line=own | first.line)
    if code in ("{0}.mul(0.7)", "{0} + 0.1", "{0}.clamp(-1.5, 1.5)"):
        if first.made_of != WEIGHED:
            return replace(place, made_of=first.made_of, line=own | first.line)
        return replace(first, same=target, line=own | first.line)
    if len(sources) == 2 and "cat" not in code:
        if sources[0].line & sources[1].line:
            raise UnclearError("an activation that is written out, or none")
        if DATA in (sources[0].made_of, sources[1].made_of):
            raise UnclearError("a sum with data")
        return replace(place, made_of=_together(code, [source.made_of for source in sources]))
    return place


def _together(code: str, kinds: list[str]) -> str:
    if WEIGHED in kinds:
        return WEIGHED
    if "*" in code:
        return GATED
    return GATED if GATED in kinds else WEIGHED
