"""What is kept of a potential between forward and backward, and the addition to its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils.checkpoint import CheckpointError
from torch.utils.hooks import RemovableHandle

from lightning_psp.capture.checkpoints import restore
from lightning_psp.capture.graph import Edge, ReachedGraph
from lightning_psp.capture.origin import Potential
from lightning_psp.functional.penalty import count_units
from lightning_psp.functional.precision import accumulation_dtype
from lightning_psp.functional.reductions import RULES, Reduction
from lightning_psp.gradient.arriving import Arriving
from lightning_psp.gradient.class_states import ClassStates
from lightning_psp.gradient.kernels import add_potential, can_be_overwritten, square_sum
from lightning_psp.torch_private.tensors import version_of

Gradients: TypeAlias = tuple[Tensor | None, ...]


class Tap:
    """What is kept of one potential between forward and backward.

    Args:
        z: the potential.
        potential: its layer.
        in_place: whether the nonlinearity is about to overwrite it.
        reduction: reduction of the penalty, or None to keep the statistic alone.
        save: inside a checkpointed function, has the potential computed again in the backward pass and returns what
            :func:`~lightning_psp.capture.checkpoints.restore` makes it of; None elsewhere.
        states: what the entropy term knows of it, or None without one.
    """

    def __init__(
        self,
        z: Tensor,
        potential: Potential[Any],
        in_place: bool,
        reduction: Reduction | None,
        save: Callable[[Tensor, bool], Tensor | None],
        states: ClassStates | None = None,
    ) -> None:
        self.potential = potential
        self.elements = z.numel()
        self.batch_size = z.shape[0]
        self.observations = self.elements // count_units(z, potential.unit_dim)
        node: Node | None = z.grad_fn
        self.edge = (node, z.output_nr)
        self.batch_sum: Tensor | None = None
        self._square_sum: Tensor | None = None
        self._value: Tensor | None = None
        self._placeholder: Tensor | None = None  # for a value that is computed again
        self._witness: Tensor | None = None  # shares the version counter of the potential
        self._shape, self._dtype = z.shape, z.dtype
        self._handle: RemovableHandle | None = None
        self._listening: RemovableHandle | None = None
        self._penalty: tuple[float, Tensor | None] | None = None  # coefficient and direction
        self._slopes: Tensor | None = None  # of the entropy term
        self._has_terms = False
        self.states = states
        rule = None if reduction is None or node is None else RULES[reduction]
        adds_itself = rule is not None and not rule.squares_means
        if rule is not None and rule.squares_means:
            self.batch_sum = z.detach().sum(dim=0, dtype=accumulation_dtype(z.dtype))
        if adds_itself or states is not None:
            self._hold(z, in_place, save)
        if not adds_itself or self._placeholder is not None:
            self._square_sum = square_sum(z)
        self._version = 0 if self._witness is None else version_of(self._witness)

    def _hold(self, z: Tensor, in_place: bool, save: Callable[[Tensor, bool], Tensor | None]) -> None:
        if (placeholder := save(z, in_place)) is not None:
            self._placeholder = placeholder
            if not in_place:
                self._witness = z.detach()
                self._witness.data = z.new_empty(0)  # lets go of the memory
        elif in_place:
            self._value = z.detach().clone()
        else:
            self._value = self._witness = z.detach()

    @property
    def layer(self) -> str:
        """Name of the layer."""
        return self.potential.layer

    @property
    def square_sum(self) -> Tensor:
        """Sum of the squares of the potential."""
        if self._square_sum is None:
            self.check_unchanged()
            assert self._value is not None
            self._square_sum = square_sum(self._value)
        return self._square_sum

    def is_live(self, graph: ReachedGraph) -> bool:
        """Whether gradient of the loss arrives at the potential, through its nonlinearity too, and at a parameter."""
        # A tap that was penalised has let go of its edge.
        results = self.potential.results
        return graph.holds(self.edge) and (
            self.potential.is_differentiated or any(e[0] is not None and e in graph.edges for e in results)
        )

    def edges(self) -> list[Edge]:
        """Where it is in the graph."""
        return [self.edge]

    def preserve(self, z: Tensor) -> None:
        """Copies the potential, which is about to be overwritten where it is, or as the view `z` of it."""
        if self._witness is not None:
            self.check_unchanged()
            if self._value is not None:
                self._value = self._value.clone()
            elif self._placeholder is not None:  # what a checkpoint would compute again is overwritten then, too
                own = None if self.potential.origin is None else self.potential.origin.reference()
                self._value, self._placeholder = (z if own is None else own).detach().clone(), None
            self._witness = None

    def check_unchanged(self) -> None:
        """Raises a RuntimeError if the potential was overwritten after its nonlinearity had read it."""
        if self._witness is not None and version_of(self._witness) != self._version:
            raise RuntimeError(
                f"The potentials of layer {self.layer!r} were overwritten in place after their nonlinearity had read"
                " them, so that their penalty cannot be computed. Write the operation that follows out of place"
                " (`x = x + y` for `x += y`), or leave the layer out with the argument `exclude`."
            )

    def listen(self, hear: Callable[[], None]) -> None:
        """Has `hear` called whenever gradient passes the potential, until it is let go of."""
        node = self.edge[0]

        def call(gradients: Gradients) -> None:
            hear()

        if node is not None:
            self._listening = node.register_prehook(call)

    def arm(self, alpha: float, direction: Tensor | None, arriving: Arriving) -> None:
        """Makes the next backward pass add `alpha · arriving · direction` to the gradient of the potential.

        Args:
            alpha: the coefficient that is known before the backward pass.
            direction: the tensor to add, broadcast over the batch; the potential itself if None.
            arriving: gives the gradient that arrived at the loss.
        """
        if direction is None:
            self.check_unchanged()
        self._penalty = (alpha, direction)
        self._register(arriving)

    def arm_entropy(self, slopes: Tensor, arriving: Arriving) -> None:
        """Makes the next backward pass add the gradient of the entropy term to that of the potential.

        Args:
            slopes: derivative of the term by the state of a unit in a sample of each class, ``[classes, units]``.
            arriving: gives the gradient that arrived at the loss.
        """
        self.check_unchanged()
        self._slopes = slopes
        self._register(arriving)

    def _register(self, arriving: Arriving) -> None:
        if self._handle is not None:
            return
        node = self.edge[0]
        assert node is not None

        def add_terms(gradients: Gradients) -> Gradients:
            if torch.is_grad_enabled():
                raise NotImplementedError(
                    "backward(create_graph=True) cannot differentiate the penalty on potentials a second time. Leave"
                    " the callback out and add `lam * psp_penalty(potentials)` of `record_potentials` to the loss."
                )
            if self._has_terms:  # of an earlier pass through the same graph
                return gradients
            self._has_terms = True
            return self._change(gradients, lambda gradient: self._add_terms(gradient, arriving))

        self._handle = node.register_prehook(add_terms)

    def _change(self, gradients: Gradients, add: Callable[[Tensor], Tensor]) -> Gradients:
        """The gradients that the node of the potential is given, with an addition to that of the potential."""
        output_nr = self.edge[1]
        gradient = gradients[output_nr]
        if gradient is None:
            raise RuntimeError(
                f"The gradient of the loss that arrives at the potentials of layer {self.layer!r} is None, to which"
                " autograd lets nothing be added: a `torch.autograd.Function` between them and the loss returns"
                " None. Have it return zeros, or leave the layer out with the argument `exclude`."
            )
        return (*gradients[:output_nr], add(gradient), *gradients[output_nr + 1 :])

    def arm_to_measure(self, alpha: float, direction: Tensor | None) -> Callable[[], None]:
        """Makes every backward pass add `alpha · direction` to the gradient of the potential, which stays as it is.

        Args:
            alpha: the coefficient.
            direction: the tensor to add, broadcast over the batch; the potential itself if None.

        Returns:
            Ends it.
        """
        node = self.edge[0]
        assert node is not None
        if direction is None:
            self.check_unchanged()

        def add(gradient: Tensor) -> Tensor:
            if direction is not None:
                return self._add_direction(gradient, direction, alpha, 1.0)
            return torch.add(gradient, self._recompute() if self._value is None else self._value, alpha=alpha)

        handle: RemovableHandle = node.register_prehook(lambda gradients: self._change(gradients, add))
        return handle.remove

    def _add_terms(self, gradient: Tensor, arriving: Arriving) -> Tensor:
        penalty, arrived = self._penalty, arriving.value_for(gradient)
        if penalty is not None and penalty[1] is not None:
            gradient = self._add_direction(gradient, penalty[1], penalty[0], arrived)
            penalty = None
        if penalty is None and self._slopes is None:
            return gradient
        value = self._take_value()
        if self._slopes is not None:
            assert self.states is not None
            gradient = self.states.add_gradient(gradient, value, self._slopes, arriving.value)
        # Last, for it may write over the value.
        return gradient if penalty is None else self._add_value(gradient, value, penalty[0], arrived)

    def _add_value(self, gradient: Tensor, value: Tensor, alpha: float, arrived: float | Tensor) -> Tensor:
        # The memory of a potential that nothing else needs any more takes the sum.
        out = value if can_be_overwritten(value) else None
        if isinstance(arrived, Tensor):
            if self._square_sum is None:
                self._square_sum = square_sum(value)
            return torch.addcmul(gradient, value, arrived, value=alpha, out=out)
        result, self._square_sum = add_potential(gradient, value, alpha * arrived, out)
        return result

    def _take_value(self) -> Tensor:
        # Its memory is free as soon as the gradient has passed.
        value, self._value, self._witness = self._value, None, None
        if value is None:
            value, self._placeholder = self._recompute(), None
        return value

    def _recompute(self) -> Tensor:
        assert self._placeholder is not None
        try:
            value = restore(self._placeholder)
        except CheckpointError as error:
            raise self._not_recomputed() from error
        if value.shape != self._shape:
            raise self._not_recomputed()
        return value

    def _not_recomputed(self) -> RuntimeError:
        return RuntimeError(
            f"The potentials of layer {self.layer!r} lie inside an activation checkpoint whose recomputation did not"
            " come by them again, so that their penalty cannot be computed. Let the checkpointed function do the same"
            " in both passes, or leave the layer out with the argument `exclude`."
        )

    def _add_direction(self, gradient: Tensor, direction: Tensor, alpha: float, arrived: float | Tensor) -> Tensor:
        step = direction.to(self._dtype).expand(self.batch_size, *direction.shape)
        if isinstance(arrived, Tensor):
            return torch.addcmul(gradient, step, arrived, value=alpha)
        return torch.add(gradient, step, alpha=alpha * arrived)

    def release(self) -> None:
        """Lets go of the graph and of the potential."""
        for handle in (self._handle, self._listening):
            if handle is not None:
                handle.remove()
        self._handle = self._listening = None
        self.edge = (None, 0)
        self.potential.results.clear()
        self._value = self._witness = self._placeholder = None
        self.batch_sum = self._slopes = None
        self.states = self._penalty = None
