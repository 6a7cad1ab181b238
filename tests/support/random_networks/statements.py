"""The statements that random networks are made of."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from tests.support.random_networks.program import Program, Statement, Value
from tests.support.random_networks.views import DETACHED, RESHAPED, SAME, View, part, permuted, reshaped, selected

# The nonlinearity out of place, its module (with {} for `inplace=True`, if it has that), and pairs of codes that call
# it, out of place and in place.
ACTIVATIONS: list[tuple[Callable[[Tensor], Tensor], str, list[tuple[str, str]]]] = [
    (
        F.relu,
        "nn.ReLU({})",
        [
            ("F.relu({0})", "F.relu({0}, inplace=True)"),
            ("torch.relu({0})", "torch.relu_({0})"),
            ("{0}.relu()", "{0}.relu_()"),
        ],
    ),
    (torch.tanh, "nn.Tanh()", [("torch.tanh({0})", "torch.tanh_({0})"), ("{0}.tanh()", "{0}.tanh_()")]),
    (torch.sigmoid, "nn.Sigmoid()", [("torch.sigmoid({0})", "{0}.sigmoid_()"), ("F.sigmoid({0})", "")]),
    (F.gelu, "nn.GELU()", [("F.gelu({0})", "")]),
    (F.silu, "nn.SiLU({})", [("F.silu({0})", "F.silu({0}, inplace=True)")]),
    (F.relu6, "nn.ReLU6({})", [("F.relu6({0})", "F.relu6({0}, True)")]),
    (F.hardtanh, "nn.Hardtanh({})", [("F.hardtanh({0})", "F.hardtanh_({0})")]),
    (lambda z: F.leaky_relu(z, 0.2), "nn.LeakyReLU(0.2, {})", [("F.leaky_relu({0}, 0.2)", "F.leaky_relu_({0}, 0.2)")]),
    (F.softplus, "nn.Softplus()", [("F.softplus(input={0})", "")]),
    (F.elu, "nn.ELU({})", [("F.elu({0})", "F.elu_({0})")]),
    (F.hardswish, "nn.Hardswish({})", [("F.hardswish({0})", "F.hardswish({0}, inplace=True)")]),
    (F.mish, "nn.Mish({})", [("F.mish({0})", "F.mish({0}, inplace=True)")]),
    (F.softsign, "nn.Softsign()", [("F.softsign({0})", "")]),
]


class Statements:
    """Draws the statements of one program; each method adds one or a few where some value suits."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.program = Program()
        self.values = self.program.values

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def flag(self) -> bool:
        return self.draw(st.booleans())

    def recent(self, suits: Callable[[Value], bool] = lambda value: True) -> int | None:
        """One of the latest values that suit, None if there is none."""
        # Indices are for embeddings alone, and nobody knows where the units of a network's input are.
        first = 1 if self.program.integers or self.values[0].units > 1 else 0
        first = min(first, len(self.values) - 1)
        found = [index for index, value in enumerate(self.values) if index >= first and suits(value)][:-5:-1]
        position = self.draw(st.sampled_from([0, 0, 0, 0, 1, 1, 2, 3]))  # most often the last, or much would be dead
        return found[min(position, len(found) - 1)] if found else None

    def add(self, statement: Statement, shape: tuple[int, ...], units: int) -> int:
        self.program.statements.append(statement)
        self.values.append(Value(shape, units))
        return len(self.values) - 1

    # --- layers ----------------------------------------------------------------------------------------------------

    def layer(self, constructor: str, source: int, shape: tuple[int, ...], units: int, fresh: bool = False) -> int:
        layers = self.program.layers
        alike = [name for name, other in layers.items() if other == constructor and not name.startswith("head")]
        if alike and not fresh and self.number(0, 3) == 3:  # shared weights
            name = alike[-1]
        else:
            name = f"{'head' if fresh else 'layer'}{len(layers)}"
            layers[name] = constructor
            if not fresh and self.number(0, 7) == 7:
                self.program.frozen.add(name)
        code = f"self.{name}({{0}})"
        return self.add(Statement(code, lambda made, x: made[name](x), (source,), (name,)), shape, units)

    def affine(self) -> None:
        source = self.recent()
        shape, units = self.values[source].shape, self.values[source].units
        width = 4 + 2 * self.number(0, 1)
        if units == len(shape):
            self.layer(f"nn.Linear({shape[-1]}, {width})", source, (*shape[:-1], width), units)
        else:
            dims = len(shape) - 1
            bias = ", bias=False" if self.flag() else ""
            constructor = f"nn.Conv{dims}d({shape[0]}, {width}, 3, padding=1{bias})"
            self.layer(constructor, source, (width, *shape[1:]), units)

    def norm(self) -> None:
        source = self.recent()
        shape, units = self.values[source].shape, self.values[source].units
        features = shape[units - 1]
        dims = len(shape) - 1
        choices = [f"nn.LayerNorm({features})", f"nn.RMSNorm({features})"] if units == len(shape) else []
        if units == 1:
            choices += [f"nn.BatchNorm{max(dims, 1)}d({features})"]
            if features % 2 == 0:
                choices += [f"nn.GroupNorm(2, {features})"]
        self.layer(self.draw(st.sampled_from(choices)), source, shape, units)

    def embedding(self) -> None:
        self.layer("nn.Embedding(5, 4)", 0, (*self.values[0].shape, 4), len(self.values[0].shape) + 1)

    def pool(self) -> None:
        source = self.recent(lambda value: len(value.shape) > 1 and value.units == 1)
        if source is not None:
            shape = self.values[source].shape
            name = self.draw(st.sampled_from(["Avg", "Max"]))
            self.layer(f"nn.{name}Pool{len(shape) - 1}d(3, 1, 1)", source, shape, 1)

    def dropout(self) -> None:
        source = self.recent()
        training = self.program.training and self.flag()
        code = f"F.dropout({{0}}, 0.3, training={training})"
        shape, units = self.values[source].shape, self.values[source].units
        compute = lambda made, x: F.dropout(x, 0.3, training=training)  # noqa: E731
        self.add(Statement(code, compute, (source,), view=None if training else SAME), shape, units)

    # --- nonlinearities --------------------------------------------------------------------------------------------

    def activation(self, source: int | None = None) -> int:
        source = self.recent() if source is None else source
        function, constructor, codes = self.draw(st.sampled_from(ACTIVATIONS))
        form = self.number(0, len(codes))
        layers: tuple[str, ...] = ()
        if form == 0:
            plain, in_place = self.activation_module(constructor.format("")), ""
            layers = (plain,)
            if "{}" in constructor:
                in_place = self.activation_module(constructor.format("inplace=True"))
                layers = (plain, in_place)
            code, code_in_place = f"self.{plain}({{0}})", f"self.{in_place}({{0}})" if in_place else ""
        else:
            code, code_in_place = codes[form - 1]
        statement = Statement(
            code,
            lambda made, z: function(z),
            (source,),
            layers,
            code_in_place,
            in_place=code_in_place != "" and self.flag(),
            is_activation=True,
        )
        return self.add(statement, self.values[source].shape, self.values[source].units)

    def activation_module(self, constructor: str) -> str:
        """One activation module for all its calls, or another one."""
        layers = self.program.layers
        alike = [name for name, other in layers.items() if other == constructor]
        if alike and self.flag():
            return alike[-1]
        layers[f"act{len(layers)}"] = constructor
        return f"act{len(layers) - 1}"

    def prelu(self) -> None:
        source = self.recent()
        shape, units = self.values[source].shape, self.values[source].units
        name = f"prelu{len(self.program.layers)}"
        self.program.layers[name] = "nn.PReLU()"
        code = self.draw(st.sampled_from([f"self.{name}({{0}})", f"F.prelu({{0}}, self.{name}.weight)"]))
        compute = lambda made, z: F.prelu(z, made[name].weight)  # noqa: E731
        self.add(Statement(code, compute, (source,), (name,), is_activation=True), shape, units)

    def glu(self) -> None:
        source = self.recent(lambda value: value.shape[value.units - 1] % 2 == 0)
        if source is not None:
            units = self.values[source].units
            shape = _with_units(self.values[source], self.values[source].shape[units - 1] // 2)
            code = f"F.glu({{0}}, {units})"
            statement = Statement(code, lambda made, z: F.glu(z, units), (source,), is_activation=True)
            self.add(statement, shape, units)

    # --- arithmetic ------------------------------------------------------------------------------------------------

    def sum_or_product(self) -> None:
        first = self.recent()
        value = self.values[first]
        second = self.recent(lambda other: other == value)
        sign, compute = self.draw(
            st.sampled_from(
                [
                    ("+", lambda made, x, y: x + y),
                    ("*", lambda made, x, y: x * y),
                    ("-", lambda made, x, y: x - y),
                ]
            )
        )
        in_place = f"{{0}} {sign}= {{1}}"
        statement = Statement(f"{{0}} {sign} {{1}}", compute, (first, second), (), in_place, self.flag())
        self.add(statement, value.shape, value.units)

    def scale(self) -> None:
        source = self.recent()
        value = self.values[source]
        code, in_place, compute = self.draw(
            st.sampled_from(
                [
                    ("{0}.mul(0.7)", "{0}.mul_(0.7)", lambda made, x: x * 0.7),
                    ("{0} + 0.1", "{0} += 0.1", lambda made, x: x + 0.1),
                    ("{0}.clamp(-1.5, 1.5)", "{0}.clamp_(-1.5, 1.5)", lambda made, x: x.clamp(-1.5, 1.5)),
                ]
            )
        )
        self.add(Statement(code, compute, (source,), (), in_place, self.flag()), value.shape, value.units)

    def concatenation(self) -> None:
        first = self.recent()
        value = self.values[first]
        second = self.recent(lambda other: other == value)
        shape = _with_units(value, 2 * value.shape[value.units - 1])
        if max(shape) <= 16:
            code = f"torch.cat([{{0}}, {{1}}], {value.units})"
            compute = lambda made, x, y: torch.cat([x, y], value.units)  # noqa: E731
            self.add(Statement(code, compute, (first, second)), shape, value.units)

    def mean_of_positions(self) -> None:
        source = self.recent(lambda value: len(value.shape) > 1)
        if source is not None:
            value = self.values[source]
            dims = tuple(dim for dim in range(1, len(value.shape) + 1) if dim != value.units)
            statement = Statement(f"{{0}}.mean({dims})", lambda made, x: x.mean(dims), (source,))
            self.add(statement, (value.shape[value.units - 1],), 1)

    def gate(self) -> None:
        """Squeeze and excitation: what the mean over positions says multiplies the units."""
        source = self.recent(lambda value: len(value.shape) > 1)
        if source is not None:
            value = self.values[source]
            features = value.shape[value.units - 1]
            dims = tuple(dim for dim in range(1, len(value.shape) + 1) if dim != value.units)
            squeezed = self.add(
                Statement(f"{{0}}.mean({dims})", lambda made, x: x.mean(dims), (source,)), (features,), 1
            )
            excited = self.activation(self.layer(f"nn.Linear({features}, {features})", squeezed, (features,), 1))
            shape = tuple(features if dim == value.units else 1 for dim in range(1, len(value.shape) + 1))
            code = f"{{0}} * {{1}}.reshape(-1, {', '.join(map(str, shape))})"
            compute = lambda made, x, y: x * y.reshape(-1, *shape)  # noqa: E731
            self.add(Statement(code, compute, (source, excited)), value.shape, value.units)

    def gated_linear(self) -> None:
        """Two linear maps of one value, the nonlinearity of one times the other."""
        source = self.recent(lambda value: value.units == len(value.shape))
        if source is not None:
            shape = self.values[source].shape
            constructor = f"nn.Linear({shape[-1]}, 4)"
            shape = (*shape[:-1], 4)
            gate = self.activation(self.layer(constructor, source, shape, len(shape)))
            up = self.layer(constructor, source, shape, len(shape))
            self.add(Statement("{0} * {1}", lambda made, x, y: x * y, (gate, up)), shape, len(shape))

    def attention(self) -> None:
        source = self.recent(lambda value: len(value.shape) == 2 and value.units == 2)
        if source is not None:
            value = self.values[source]
            code, compute = self.draw(
                st.sampled_from(
                    [
                        ("F.softmax({0} @ {0}.mT, -1) @ {0}", lambda made, x: torch.softmax(x @ x.mT, -1) @ x),
                        (
                            "F.scaled_dot_product_attention({0}, {0}, {0})",
                            lambda made, x: torch.softmax(x @ x.mT / x.shape[-1] ** 0.5, -1) @ x,
                        ),
                    ]
                )
            )
            self.add(Statement(code, compute, (source,)), value.shape, 2)

    # --- views -----------------------------------------------------------------------------------------------------

    def view(self, code: str, view: View, source: int, shape: tuple[int, ...], units: int) -> int:
        return self.add(Statement(code, lambda made, x: view.read(x), (source,), view=view), shape, units)

    def flat(self, source: int) -> int:
        shape = self.values[source].shape
        size = 1
        for length in shape:
            size *= length
        return self.view("{0}.flatten(1)", RESHAPED, source, (size,), 1) if len(shape) > 1 else source

    def flattened(self) -> None:
        self.flat(self.recent())

    def channels_moved(self) -> None:
        source = self.recent(lambda value: len(value.shape) > 1)
        if source is not None:
            value = self.values[source]
            dims = len(value.shape) + 1
            if value.units == 1:
                order, shape = (0, *range(2, dims), 1), (*value.shape[1:], value.shape[0])
            else:
                order, shape = (0, dims - 1, *range(1, dims - 1)), (value.shape[-1], *value.shape[:-1])
            code = "{0}.transpose(1, 2)" if dims == 3 and self.flag() else f"{{0}}.permute{order}"
            self.view(code, permuted(*order), source, shape, dims - value.units if dims > 3 else 3 - value.units)
            if dims > 3:
                self.values[-1] = Value(shape, dims - 1 if value.units == 1 else 1)

    def moved_sum(self) -> None:
        """A sum whose units are moved to another dimension before the nonlinearity."""
        self.sum_or_product()
        self.channels_moved()
        self.activation()

    def positions_joined(self) -> None:
        source = self.recent(lambda value: len(value.shape) == 3 and value.units == 1)
        if source is not None:
            channels, height, width = self.values[source].shape
            code = self.draw(st.sampled_from(["{0}.flatten(2)", f"{{0}}.reshape(-1, {channels}, {height * width})"]))
            self.view(code, reshaped(channels, height * width), source, (channels, height * width), 1)

    def half(self) -> None:
        """The first or the second half of the units."""
        source = self.recent(lambda value: value.shape[value.units - 1] > 2)
        if source is not None:
            value = self.values[source]
            size = value.shape[value.units - 1] // 2
            second = self.number(0, 1)
            dim = value.units
            before = ":, " * dim
            code = self.draw(
                st.sampled_from(
                    [
                        f"{{0}}[{before}{second * size}:{(second + 1) * size}]",
                        f"{{0}}.narrow({dim}, {second * size}, {size})",
                        f"{{0}}.split({size}, {dim})[{second}]",
                    ]
                )
            )
            window = part(dim, second * size, (second + 1) * size)
            self.view(code, window, source, _with_units(value, size), dim)

    def overwritten_part(self) -> None:
        """The first units of a value are overwritten by their nonlinearity, the others stay."""
        source = self.recent(lambda value: value.shape[value.units - 1] > 2)
        if source is not None:
            value = self.values[source]
            window = part(value.units, 0, 2)
            target = "{0}[" + ":, " * value.units + ":2]"
            first = self.view(target, window, source, _with_units(value, 2), value.units)
            gate = self.activation(first)
            statement = Statement(
                "torch.cat([{1}, {0}[" + ":, " * value.units + f"2:]], {value.units})",
                lambda made, x, y: window.write(x, y),
                (source, gate),
                (),
                f"{target} = {{1}}",
                self.flag(),
            )
            self.add(statement, value.shape, value.units)

    def token(self) -> None:
        source = self.recent(lambda value: len(value.shape) == 2 and value.units == 2)
        if source is not None:
            self.view("{0}[:, 0]", selected(1, 0), source, self.values[source].shape[1:], 1)

    def detached(self) -> None:
        source = self.recent()
        self.view("{0}.detach()", DETACHED, source, self.values[source].shape, self.values[source].units)

    def without_gradient(self) -> None:
        """A linear map and a nonlinearity under `torch.no_grad()`."""
        source = self.recent(lambda value: value.units == len(value.shape))
        if source is not None:
            shape = self.values[source].shape
            name = f"teacher{len(self.program.layers)}"
            self.program.layers[name] = f"nn.Linear({shape[-1]}, {shape[-1]})"
            statement = Statement(
                f"torch.relu(self.{name}({{0}}))",
                lambda made, x: made[name](x).relu(),
                (source,),
                (name,),
                without_gradient=True,
            )
            self.add(statement, shape, len(shape))


def _with_units(value: Value, size: int) -> tuple[int, ...]:
    return tuple(size if dim == value.units else length for dim, length in enumerate(value.shape, start=1))
