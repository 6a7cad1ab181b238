"""The penalty of a random network by hand: every potential, what the loss depends on, and R.

The statements of a program are evaluated out of place. Memory that several values share is a cell; an in-place
operation gives the cell another tensor, made of the one before. Which potentials lie between trained parameters and the
loss is followed value by value, without looking at autograd's graph.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tests.random_programs import LOSSES, SOFTMAX, WRITTEN, Program, View
from tests.reference import Reduction


@dataclass
class Cell:
    """Memory: its values now, the passes of potentials that they depend on, whether they depend on trained weights."""

    tensor: Tensor
    passes: frozenset[int]
    trained: bool
    writes: int = 0


@dataclass(frozen=True)
class Register:
    """A value: a cell read through views."""

    cell: Cell
    views: tuple[View, ...] = ()

    def read(self) -> Tensor:
        x = self.cell.tensor
        for view in self.views:
            x = view.read(x)
        return x

    def write(self, new: Tensor) -> None:
        self.cell.tensor = _written(self.cell.tensor, self.views, new)
        self.cell.writes += 1

    @property
    def is_detached(self) -> bool:
        return any(view.stops_gradient for view in self.views)

    @property
    def passes(self) -> frozenset[int]:
        return frozenset() if self.is_detached else self.cell.passes

    @property
    def trained(self) -> bool:
        return not self.is_detached and self.cell.trained


def _written(x: Tensor, views: tuple[View, ...], new: Tensor) -> Tensor:
    if not views:
        return new
    inner = _written(views[0].read(x), views[1:], new)
    return views[0].write(x, inner)


@dataclass
class Pass:
    """One passage of a potential: its layer, its value, whether it depends on trained weights."""

    layer: int | str
    z: Tensor
    units: int
    trained: bool
    cell: Cell | None = None
    writes: int = 0


@dataclass
class Reference:
    """One training step of a program."""

    program: Program
    layers: dict[str, nn.Module]
    shared: dict[int, bool]
    passes: list[Pass] = field(default_factory=list)
    outputs: list[list[Register] | None] = field(default_factory=list)  # of each call; None for one without gradient

    def __post_init__(self) -> None:
        self.loss = self.program.make_loss()(self.call, self.program.batch())
        hidden = len(self.passes)
        self.reached = self._reached_by_loss()
        entered = self._entering_losses()
        for call, outputs in enumerate(self.outputs):
            for index, register in enumerate(outputs or []):
                self.passes.append(self._output_pass(index, register))
                if (call, index) in self._undetached():
                    self.reached |= {len(self.passes) - 1}
        place = iter(range(hidden, len(self.passes)))
        positions = {(c, k): next(place) for c, outputs in enumerate(self.outputs) for k, _ in enumerate(outputs or [])}
        self.returned = [*range(hidden), *(i for (_, k), i in positions.items() if k not in self.program.activated)]
        self.seen = [*range(hidden), *(positions[key] for key in sorted(entered))]

    # --- the network -----------------------------------------------------------------------------------------------

    def call(self, x: Tensor) -> Tensor | list[Tensor]:
        """One call of the network."""
        registers = [Register(Cell(x, frozenset(), False))]
        for target, statement in enumerate(self.program.statements, start=1):
            registers.append(self._execute(target, [registers[source] for source in statement.sources]))
        outputs = [registers[output] for output in self.program.outputs]
        self.outputs.append(outputs if torch.is_grad_enabled() else None)
        tensors = [register.read() for register in outputs]
        return tensors if len(tensors) > 1 else tensors[0]

    def _execute(self, target: int, sources: list[Register]) -> Register:
        statement = self.program.statements[target - 1]
        first = sources[0]
        if statement.view is not None and self.shared[target]:
            return Register(first.cell, (*first.views, statement.view))
        has_gradient = torch.is_grad_enabled() and not statement.without_gradient
        tensors = [source.read() for source in sources]
        with torch.set_grad_enabled(has_gradient):
            result = statement.compute(self.layers, *tensors)
        passes = frozenset().union(*(source.passes for source in sources)) if has_gradient else frozenset()
        weights = [p for name in statement.layers if name in self.layers for p in self.layers[name].parameters()]
        trained = has_gradient and (any(source.trained for source in sources) or any(p.requires_grad for p in weights))
        noted = None
        if statement.is_activation and has_gradient:
            units = self.program.values[statement.sources[0]].units
            noted = Pass(target, tensors[0], units, first.trained, first.cell)
            passes |= {len(self.passes)}
            self.passes.append(noted)
        if statement.in_place:
            first.write(result)
            first.cell.passes |= passes
            first.cell.trained |= trained
        if noted is not None:
            noted.writes = first.cell.writes
        return first if statement.in_place else Register(Cell(result, passes, trained))

    # --- the loss --------------------------------------------------------------------------------------------------

    def _undetached(self) -> set[tuple[int, int]]:
        """Call and index of the outputs through which the loss has gradient."""
        terms = self.program.terms
        used = {(term.call, term.output) for term in terms}
        used |= {(term.other, term.output) for term in terms if term.kind == "pair" and not term.detached}
        return {(call, index) for call, index in used if self.outputs[call] is not None}

    def _reached_by_loss(self) -> frozenset[int]:
        return frozenset().union(*(self.outputs[call][index].passes for call, index in self._undetached()))

    def _entering_losses(self) -> set[tuple[int, int]]:
        """Call and index of the outputs that are an output layer of their own."""
        softmax: set[tuple[int, int]] = set()
        direct: set[tuple[int, int]] = set()
        for term in self.program.terms:
            kind = LOSSES[term.kind][1]
            if kind != WRITTEN:
                (softmax if kind == SOFTMAX else direct).add((term.call, term.output))
            if term.kind == "pair":
                direct.add((term.other, term.output))
        if not softmax:
            direct = {(c, k) for c, outputs in enumerate(self.outputs) for k, _ in enumerate(outputs or [])}
        direct = {(c, k) for c, k in direct if k not in self.program.activated}
        return {(c, k) for c, k in softmax | direct if self.outputs[c] is not None}

    def _output_pass(self, index: int, register: Register) -> Pass:
        units = self.program.values[self.program.outputs[index]].units
        return Pass(f"output {index}", register.read(), units, register.trained)

    # --- what is compared ------------------------------------------------------------------------------------------

    @property
    def is_refusable(self) -> bool:
        """Whether memory that held a potential was written to by something else than its nonlinearity."""
        return any(noted.cell is not None and noted.writes != noted.cell.writes for noted in self.passes)

    def penalised(self) -> dict[int | str, list[Pass]]:
        """The passes that R covers in Lightning, by layer."""
        return _by_layer(self.passes[i] for i in self.seen if i in self.reached and self.passes[i].trained)

    def recorded(self) -> dict[int | str, list[Pass]]:
        """What `record_potentials` gives, by layer in order of call."""
        return _by_layer(self.passes[i] for i in self.returned)

    def watched(self) -> dict[int | str, list[Pass]]:
        """What ⟨z²⟩ is the mean of, by layer."""
        return _by_layer(self.passes[i] for i in self.seen)


def _by_layer(passes: Iterable[Pass]) -> dict[int | str, list[Pass]]:
    layers: dict[int | str, list[Pass]] = {}
    for noted in passes:
        layers.setdefault(noted.layer, []).append(noted)
    return layers


def penalty(layers: dict[int | str, list[Pass]], reduction: Reduction) -> Tensor:
    """R of the passes of some layers, by the formulas."""
    terms = []
    for passes in layers.values():
        z = torch.cat([noted.z for noted in passes])
        if reduction == "mean":
            terms.append((z * z).mean())
        elif reduction == "squared_mean":
            terms.append((z.mean(0) ** 2).mean())
        else:
            terms.append(0.5 * (z * z).sum() / (z.numel() / z.shape[passes[0].units]))
    return sum(terms) / len(terms) if reduction == "mean" else sum(terms)
