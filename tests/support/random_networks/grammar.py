"""The grammar of random networks: a beginning, statements, heads, and the losses that end them."""

from hypothesis import strategies as st

from tests.support.random_networks.program import LOSSES, Program, Term, Value
from tests.support.random_networks.statements import Statements


class Builder(Statements):
    """Draws one program."""

    def start(self) -> None:
        self.program.training = self.number(0, 3) != 3
        kind = self.draw(st.sampled_from(["features", "images", "tokens", "signal", "indices"]))
        shape = {"features": (4,), "images": (2, 3, 4), "tokens": (3, 4), "signal": (4, 5), "indices": (3,)}[kind]
        self.program.integers = kind == "indices"
        self.program.input_has_gradient = kind != "indices" and self.number(0, 4) == 4
        units = len(shape) if kind in ("features", "tokens") else 1
        self.values.append(Value(shape, units))
        if kind == "indices":
            self.embedding()
        else:
            self.affine()

    def body(self) -> None:
        most = [self.affine, self.activation, self.activation, self.activation]
        steps = st.sampled_from(
            [
                *most,
                *(self.norm, self.pool, self.dropout, self.prelu, self.glu, self.sum_or_product, self.sum_or_product),
                *(self.scale, self.concatenation, self.mean_of_positions, self.gate, self.gated_linear),
                *(self.attention, self.flattened, self.channels_moved, self.positions_joined, self.half, self.token),
                self.moved_sum,
                self.overwritten_part,
                *(self.detached, self.without_gradient),
            ]
        )
        for step in self.draw(st.lists(steps, min_size=self.number(0, 10), max_size=16)):
            step()

    def head(self) -> None:
        source = self.recent()
        shape, units = self.values[source].shape, self.values[source].units
        form = self.number(0, 2)
        if form == 1 and units == len(shape):
            output = self.layer(f"nn.Linear({shape[-1]}, 3)", source, (*shape[:-1], 3), units, fresh=True)
        elif form == 1 and units == 1:
            constructor = f"nn.Conv{len(shape) - 1}d({shape[0]}, 3, 1)"
            output = self.layer(constructor, source, (3, *shape[1:]), 1, fresh=True)
        else:
            source = self.flat(source)
            shape = self.values[source].shape
            output = self.layer(f"nn.Linear({shape[0]}, 3)", source, (3,), 1, fresh=True)
        if self.number(0, 5) == 5:
            output = self.activation(output)
            self.program.activated.add(len(self.program.outputs))
        self.program.outputs.append(output)

    def losses(self) -> None:
        program = self.program
        calls = self.number(1, 3)
        program.calls = [True, *(self.number(0, 3) < 3 for _ in range(calls - 1))]
        same_size = self.flag()
        program.batch_sizes = [4 if same_size else 3 + call for call in range(calls)]
        kinds = [kind for kind in LOSSES if kind != "pair" or (calls > 1 and same_size)]
        for output in range(len(program.outputs)):
            if output > 0 and self.number(0, 3) == 3:
                continue  # a head without a loss
            # A sigmoid in the loss of what a nonlinearity gave is a layer, or not: the definitions do not say.
            is_clear = output not in program.activated
            kind = self.draw(st.sampled_from([kind for kind in kinds if is_clear or kind != "sigmoid"]))
            if kind == "pair":
                detached = self.flag()
                program.terms += [Term(kind, output, 0, other, detached) for other in range(1, calls)]
            else:
                program.terms += [
                    Term(kind, output, call) for call, has_gradient in enumerate(program.calls) if has_gradient
                ]

    def build(self, every_potential: bool) -> Program:
        self.start()
        self.body()
        for _ in range(1 + (self.number(0, 3) == 3)):
            self.head()
        self.losses()
        length = len(self.program.statements)
        if self.flag():
            first = self.number(0, length - 1)
            self.program.block = (first, self.number(first + 1, length))
        self.program.reuses_names = self.flag()
        return self.program.legal(every_potential)


@st.composite
def programs(draw: st.DrawFn, every_potential: bool = False) -> Program:
    """Random programs without in-place operations that autograd refuses in a backward pass from the loss.

    Args:
        draw: given by hypothesis.
        every_potential: whether the backward pass comes from all potentials, too.
    """
    return Builder(draw).build(every_potential)
