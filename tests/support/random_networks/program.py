"""Random networks: their grammar, and their source as a user would write it.

A network is a list of statements, each of which makes one value of earlier ones. A statement holds the Python code that
a user would write and, next to it, what it computes out of place.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.random_networks.views import View


@dataclass(frozen=True)
class Statement:
    """What makes one value.

    Args:
        code: a Python expression; {0} and {1} stand for the sources.
        compute: its value, of the layers by name and the sources.
        sources: the values it takes.
        layers: the layers it calls.
        code_in_place: the same where the first source is overwritten.
        in_place: whether that is written.
        is_activation: whether its first source is a potential.
        view: how its value reads the memory of its first source, if it shares that memory.
        without_gradient: whether it runs under `torch.no_grad()`.
    """

    code: str
    compute: Callable[..., Tensor]
    sources: tuple[int, ...]
    layers: tuple[str, ...] = ()
    code_in_place: str = ""
    in_place: bool = False
    is_activation: bool = False
    view: View | None = None
    without_gradient: bool = False

    @property
    def is_assignment(self) -> bool:
        """Whether its code in place is no expression (`x += y`)."""
        return "= " in self.code_in_place


@dataclass(frozen=True)
class Value:
    """Shape of a value without its batch dimension, and the dimension of its units."""

    shape: tuple[int, ...]
    units: int


@dataclass(frozen=True)
class Term:
    """A term of the loss: the outputs of one name in one call of the network, or in two.

    Args:
        kind: a key of `LOSSES`, or "pair".
        output: which of the network's outputs.
        call: which call of the network.
        other: the other call of a pair.
        detached: whether the other output of a pair is detached.
    """

    kind: str
    output: int
    call: int
    other: int = 0
    detached: bool = False


# By name of a loss its code, and whether it holds a softmax or sigmoid, or announces its input otherwise
SOFTMAX, DIRECT, WRITTEN = "softmax", "direct", "written"
LOSSES = {
    "cross_entropy": ("F.cross_entropy({0}, {1})", SOFTMAX),
    "CrossEntropyLoss": ("nn.CrossEntropyLoss(label_smoothing=0.1)({0}, {1})", SOFTMAX),
    "log_softmax": ("F.nll_loss(F.log_softmax({0}, dim=1), {1})", SOFTMAX),
    "bce_with_logits": ("F.binary_cross_entropy_with_logits({0}, {1})", SOFTMAX),
    "sigmoid": ("F.binary_cross_entropy(torch.sigmoid({0}), {1})", SOFTMAX),
    "mse_loss": ("F.mse_loss({0}, {1})", DIRECT),
    "MSELoss": ("nn.MSELoss(reduction='sum')({0}, {1})", DIRECT),
    "smooth_l1": ("F.smooth_l1_loss({1}, {0})", DIRECT),
    "squares": ("(({0} - {1}) ** 2).mean()", WRITTEN),
    "pair": ("F.mse_loss({0}, {1})", DIRECT),
}


@dataclass
class Program:
    """A network and the loss that it is trained with."""

    integers: bool = False  # whether the input is indices for an embedding
    input_has_gradient: bool = False
    values: list[Value] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)  # the first makes the second value
    layers: dict[str, str] = field(default_factory=dict)  # name to constructor
    frozen: set[str] = field(default_factory=set)
    outputs: list[int] = field(default_factory=list)
    activated: set[int] = field(default_factory=set)  # outputs that a nonlinearity gave
    terms: list[Term] = field(default_factory=list)
    calls: list[bool] = field(default_factory=lambda: [True])  # whether with gradient, for each call
    batch_sizes: list[int] = field(default_factory=lambda: [4])
    training: bool = True
    block: tuple[int, int] = (0, 0)  # statements that are a module of their own
    reuses_names: bool = True

    def __str__(self) -> str:
        return f"\n{self.describe()}\n{self.network_source()}\n{self.loss_source()}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # as hypothesis shows it

    def describe(self) -> str:
        lines = [
            f"self.{k} = {v}" + ("  # frozen" if k in self.frozen else "")
            for k, v in sorted(self.used_layers().items())
        ]
        kind = "indices" if self.integers else "features"
        return "\n".join([*lines, f"# {kind} [batch, {self.values[0].shape}], training={self.training}"])

    # --- the network's source ------------------------------------------------------------------------------------

    def used_layers(self, start: int = 0, end: int | None = None) -> dict[str, str]:
        used = [name for statement in self.statements[start:end] for name in self._layers_of(statement)]
        return {name: self.layers[name] for name in dict.fromkeys(used)}

    def _layers_of(self, statement: Statement) -> list[str]:
        code = statement.code_in_place if statement.in_place else statement.code
        return [name for name in statement.layers if f"self.{name}(" in code or f"self.{name}." in code]

    def names(self) -> list[str]:
        """The variable of each value; a variable takes another value once nobody needs the one it has."""
        last_use = [0] * len(self.values)
        for target, statement in enumerate(self.statements, start=1):
            for source in statement.sources:
                last_use[source] = target
        for output in self.outputs:
            last_use[output] = len(self.values)
        names = ["x"]
        for target, statement in enumerate(self.statements, start=1):
            first = names[statement.sources[0]]
            holders = [value for value, name in enumerate(names) if name == first]
            is_free = self.reuses_names and all(last_use[value] <= target for value in holders)
            names.append(first if is_free or (statement.in_place and statement.is_assignment) else f"x{target}")
        return names

    def network_source(self, noted: bool = False, tapped: bool = False) -> str:
        """Python source of the network's forward, and of its block's.

        Args:
            noted: whether it notes its potentials.
            tapped: whether it hands copies of its potentials and outputs on.
        """
        names = self.names()
        start, end = self.block
        lines = [
            "    " + line
            for target in [*range(1, start + 1), *([-1] if end > start else []), *range(end + 1, len(self.values))]
            for line in (self._call_of_block(names) if target == -1 else self._lines(target, names, noted, tapped))
        ]
        given = [names[output] for output in self.outputs]
        if tapped:
            lines.insert(0, "    self.notes.start()")
            given = [f"self.notes.leave({number}, {name})" for number, name in enumerate(given)]
        outputs = ", ".join(given)
        source = ["def forward(self, x):", *lines, f"    return {outputs}"]
        if end > start:
            taken, given = self._block_names(names)
            body = [
                "    " + line
                for target in range(start + 1, end + 1)
                for line in self._lines(target, names, noted, tapped)
            ]
            source = [f"def block(self, {', '.join(taken)}):", *body, f"    return {', '.join(given)}", *source]
        return "\n".join(source)

    def _lines(self, target: int, names: list[str], noted: bool, tapped: bool) -> list[str]:
        statement = self.statements[target - 1]
        sources = [names[source] for source in statement.sources]
        if tapped and statement.is_activation:
            sources[0] = f"self.notes.enter({target}, {sources[0]})"
        code = (statement.code_in_place if statement.in_place else statement.code).format(*sources)
        if statement.in_place and statement.is_assignment:
            return [code]
        if noted and statement.view is not None:
            code = f"self.notes.view({target}, {sources[0]}, {code})"
        line = f"{names[target]} = {code}"
        if noted and statement.is_activation:
            return [f"self.notes.enter({sources[0]})", line]
        return ["with torch.no_grad():", "    " + line] if statement.without_gradient else [line]

    def _block_names(self, names: list[str]) -> tuple[list[str], list[str]]:
        start, end = self.block
        inside = range(start + 1, end + 1)
        after = {s for statement in self.statements[end:] for s in statement.sources} | set(self.outputs)
        taken = {names[s] for i in inside for s in self.statements[i - 1].sources if s <= start}
        given = {names[i] for i in inside if i in after}
        return sorted(taken), sorted(given) or [names[end]]

    def _call_of_block(self, names: list[str]) -> list[str]:
        taken, given = self._block_names(names)
        return [f"{', '.join(given)} = self.block({', '.join(taken)})"]

    # --- the loss's source ---------------------------------------------------------------------------------------

    def loss_source(self) -> str:
        lines = ["torch.manual_seed(0)", "inputs, targets = batch"]
        for call, has_gradient in enumerate(self.calls):
            line = f"y{call} = network(inputs[{call}]{'.clone().requires_grad_()' * self.input_has_gradient})"
            lines += [line] if has_gradient else ["with torch.no_grad():", "    " + line]
        codes = [f"{0.5 + 0.25 * i} * " + self._loss_code(i, term) for i, term in enumerate(self.terms)]
        return "\n".join(
            ["def loss(network, batch):", *("    " + line for line in lines), f"    return {' + '.join(codes)}"]
        )

    def _loss_code(self, index: int, term: Term) -> str:
        def output(call: int) -> str:
            return f"y{call}[{term.output}]" if len(self.outputs) > 1 else f"y{call}"

        first = output(term.call)
        if term.kind == "pair":
            second = output(term.other) + (".detach()" if term.detached else "")
            return LOSSES["pair"][0].format(first, second)
        if LOSSES[term.kind][0].startswith(("F.cross", "nn.Cross", "F.nll")):
            value = self.values[self.outputs[term.output]]
            if value.units == len(value.shape) > 1:
                first += ".movedim(-1, 1)"
        return LOSSES[term.kind][0].format(first, f"targets[{index}]")

    # --- what the sources make -----------------------------------------------------------------------------------

    def batch(self) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs of each call of the network and the target of each term of the loss."""
        generator = torch.Generator().manual_seed(1)
        shape = self.values[0].shape
        inputs = [
            torch.randint(5, (size, *shape), generator=generator)
            if self.integers
            else torch.randn(size, *shape, generator=generator, dtype=torch.float64)
            for size in self.batch_sizes
        ]
        targets = []
        for term in self.terms:
            value = self.values[self.outputs[term.output]]
            shape = (self.batch_sizes[term.call], *value.shape)
            code = LOSSES[term.kind][0]
            if code.startswith(("F.cross", "nn.Cross", "F.nll")):
                classes = shape[value.units]
                without = [size for dim, size in enumerate(shape) if dim != value.units]
                targets.append(torch.randint(classes, without, generator=generator))
            elif "binary" in code:
                targets.append(torch.randint(2, shape, generator=generator).double())
            else:
                targets.append(torch.randn(shape, generator=generator, dtype=torch.float64))
        return inputs, targets

    def make_layers(self) -> dict[str, nn.Module]:
        """All layers, the same at each call."""
        with torch.random.fork_rng():
            torch.manual_seed(2)
            made = {name: eval(constructor).double() for name, constructor in sorted(self.used_layers().items())}
        for name, layer in made.items():
            layer.train(self.training)
            for parameter in layer.parameters():
                parameter.requires_grad_(name not in self.frozen)
        return made

    def make_network(self, notes: "Notes | None" = None, taps: Any = None) -> "Network":
        """The network as a user would write it, or one that notes its potentials or hands copies of them on."""
        made = self.make_layers()
        start, end = self.block
        scope: dict[str, Any] = {"torch": torch, "nn": nn, "F": F}
        exec(self.network_source(notes is not None, taps is not None), scope)
        network = Network(scope["forward"], notes or taps)
        if end > start:
            network.block = Network(scope["block"], notes or taps)
            network.block.take({name: made[name] for name in self.used_layers(start, end)})
        outside = {**self.used_layers(0, start), **self.used_layers(end)}
        network.take({name: made[name] for name in outside})
        return network.train(self.training)

    def make_loss(self) -> Callable[[Callable[[Tensor], Any], Any], Tensor]:
        """The loss as a user would write it."""
        scope: dict[str, Any] = {"torch": torch, "nn": nn, "F": F}
        exec(self.loss_source(), scope)
        return scope["loss"]

    # --- in-place operations where autograd allows them ------------------------------------------------------------

    def legal(self, every_potential: bool) -> "Program":
        """The same program without those in-place operations that torch refuses.

        Args:
            every_potential: whether the backward pass comes from all potentials, too, and not from the loss alone.
        """
        kept = replace(self, statements=[replace(statement, in_place=False) for statement in self.statements])
        for index, statement in enumerate(self.statements):
            if statement.in_place and not self._is_detached(statement.sources[0]):
                tried = replace(kept, statements=list(kept.statements))
                tried.statements[index] = statement
                if tried._is_legal(every_potential):
                    kept = tried
        return kept

    def _is_detached(self, value: int) -> bool:
        """Whether writing to this value would change another one behind autograd's back."""
        while value > 0:
            statement = self.statements[value - 1]
            if statement.view is None and not statement.in_place:
                return False
            if statement.view is not None and statement.view.stops_gradient:
                return True
            value = statement.sources[0]
        return False

    def _is_legal(self, every_potential: bool) -> bool:
        try:
            found = self._run()
            total = found.loss
            if every_potential:
                total = total + sum(z.sum() for z in found.potentials)
            total.backward()
        except RuntimeError as error:
            if "in-place" in str(error) or "inplace" in str(error):
                return False
            raise
        return True

    def shared_memory(self) -> dict[int, bool]:
        """For each value that may share the memory of the one it was made of, whether it does."""
        return self._run().shared

    def _run(self) -> "Notes":
        notes = Notes()
        network = self.make_network(notes)
        notes.loss = self.make_loss()(network, self.batch())
        return notes


class Notes:
    """What is seen of a network while it runs by itself."""

    def __init__(self) -> None:
        self.loss = torch.zeros(())
        self.potentials: list[Tensor] = []
        self.shared: dict[int, bool] = {}

    def enter(self, z: Tensor) -> None:
        self.potentials.append(z.clone())

    def view(self, target: int, source: Tensor, result: Tensor) -> Tensor:
        self.shared[target] = source.untyped_storage().data_ptr() == result.untyped_storage().data_ptr()
        return result


class Network(nn.Module):
    """A module whose forward is generated."""

    def __init__(self, forward: Callable[..., Any], notes: Any) -> None:
        super().__init__()
        self._forward = forward
        self.notes = notes

    def take(self, layers: dict[str, nn.Module]) -> None:
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *args: Tensor) -> Any:
        return self._forward(self, *args)
