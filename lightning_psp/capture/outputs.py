"""Finding the output layer: where the network ends and the loss begins, seen from the loss backwards."""

from __future__ import annotations

import re
import weakref
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Generic, NamedTuple

from torch import Tensor

from lightning_psp.capture.graph import Edge, edges_below, is_map
from lightning_psp.capture.origin import Kept, Origin, Potential, Softmax

# Nodes of a graph that add up, average, scale and arrange: what a loss does with its terms.
_OF_TERMS = frozenset(
    "add alias asstrided broadcastto cat clone contiguous copyslices div expand expandas flatten getitem index"
    " maskedfill mean mul nanmean nansum narrow neg permute radd ravel rdiv reshape reshapealias rmul rsub select slice"
    " split squeeze stack sub sum t to tocopy transpose truediv type unbind unsafeview unsqueeze view where".split()
)


class Behind(NamedTuple):
    """A term of the loss that a way back has come past.

    Args:
        call: number of the call that returned it beside something else.
        is_weighed: whether the way has come past a weight since.
    """

    call: int
    is_weighed: bool = False


class Way(NamedTuple):
    """A way back in the graph.

    Args:
        edge: where it leads.
        is_of_terms: whether it goes by sums, means and factors alone.
        is_beside: whether it is taken where logits are met whose loss is a part of the same compiled function: it goes
            past that loss.
    """

    edge: Edge
    is_of_terms: bool
    is_beside: bool = False


@dataclass(frozen=True, eq=False)
class Target(Generic[Kept]):
    """What may be the output layer.

    Args:
        edges: to what a loss has to reach.
        tensor: the tensor, whole and as it was computed; None where its potentials are known.
        origin: what was known of it when it was returned.
        potentials: its potentials, where it has some.
        path: of the module that returned it.
        may_be_term: whether no module with weights gave it, so that it may be a term of the loss.
        made_of: to what it is made of without a further weight; None where the graph shows that.
        others: to the other tensors that hold its values under another shape or type, which a loss may reach instead.
    """

    edges: Sequence[Edge]
    tensor: Tensor | None
    origin: Origin | None
    potentials: list[Potential[Kept]]
    path: str
    may_be_term: bool = False
    made_of: Sequence[Edge] | None = None
    others: Sequence[Edge] = ()


@dataclass(frozen=True, eq=False)
class Call(Generic[Kept]):
    """What an outermost call of a module returned.

    Args:
        targets: the tensors.
        edges: to all that was returned.
        is_trained: whether the module is trained, and not frozen.
    """

    targets: list[Target[Kept]]
    edges: list[Edge]
    is_trained: bool

    def terms_beside(self) -> set[Edge]:
        """To what may be terms of a loss that the module returned beside something else: single numbers at least."""
        known = {edge for target in self.targets for edge in target.edges}
        others = {edge for target in self.targets if not target.may_be_term for edge in target.edges}
        return set(self.edges) - (others or known) if known else set()


class OutputFinder(Generic[Kept]):
    """Collects what a watch sees of outputs and losses, and finds the output layer in it."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Forgets everything."""
        self.calls: list[Call[Kept]] = []
        self.inputs_of_losses: list[Target[Kept]] = []  # of losses that a network computes itself
        self.log_softmaxes: list[
            Target[Kept]
        ] = []  # what entered those of the network, with the edges to their results
        # What entered those softmaxes of the network of which it takes the logarithm, with the edges to that.
        self.logarithms: list[tuple[Softmax, Target[Kept]]] = []
        # To logarithms of sums of exponentials in a loss, and how many weights have come before.
        self.normalisers: dict[Edge, int] = {}
        # Of which what enters a loss's own sigmoid is a part or a multiple, in every backward pass so far.
        self.wholes: list[Origin] = []
        self.inside: dict[Edge, list[Way]] = {}  # the ways inside compiled functions, from one of their results
        self.settled: Sequence[Edge] = ()  # to the losses for which outputs were sought last
        self._scalars: list[tuple[weakref.ref[Tensor] | None, Edge]] = []
        self._of_metrics: list[tuple[weakref.ref[Tensor] | None, Edge]] = []
        self._backward: list[Edge] = []

    def note_scalar(self, tensor: Tensor, edge: Edge, is_of_metric: bool) -> None:
        """Notes a single number outside the network, which may be a loss; that of a metric is one where no other is."""
        if edge[0] is None:
            return
        # Without gradient, a graph holds no memory; with it, what nobody holds is no loss.
        known = self._of_metrics if is_of_metric else self._scalars
        known.append((None if tensor.grad_fn is None else weakref.ref(tensor), edge))

    def is_number(self, result: Tensor, args: Iterable[Any]) -> bool:
        """Whether what a function gave is a single number, or a vector of one that was made of such a number.

        A vector of one may as well be of a batch of one sample.

        Args:
            result: what it gave.
            args: what it was called with.
        """
        if result.shape != (1,):
            return result.ndim == 0
        numbers = [holder() for holder, _ in self._scalars if holder is not None]
        return any(value is number for value in args if isinstance(value, Tensor) for number in numbers)

    def note_backward(self, edge: Edge) -> None:
        """Notes a backward pass inside the watch."""
        self._backward.append(edge)

    def losses(self, *, with_later: bool) -> list[Edge]:
        """To the losses that were seen: what was gone back from, else the numbers that no other one is made of.

        Args:
            with_later: whether such numbers are losses beside what was gone back from, whose backward pass comes later.
        """
        found = [*self._backward]
        if found and not with_later:
            return found
        scalars = _held(self._scalars) or ([] if found else _held(self._of_metrics))
        if len(found) + len(scalars) < 2:
            return [*found, *scalars]
        below = {edge for loss in found for edge in edges_below(loss)}.union(found)
        for edge in reversed(scalars):
            if edge not in below:
                found.append(edge)
                below |= edges_below(edge)
        return found

    def find(self, losses: Sequence[Edge], logits: Iterable[Potential[Kept]]) -> tuple[list[Target[Kept]], set[Any]]:
        """The output layers, and the nodes of the graph that lie between them and the losses.

        Args:
            losses: to the losses; none where none was seen.
            logits: the potentials that enter a loss's own softmax or sigmoid.
        """
        self.settled = losses
        entering = [Target(potential.results, None, None, [potential], "") for potential in logits]
        any_trained = any(call.is_trained for call in self.calls)
        calls = [call for call in self.calls if call.is_trained or not any_trained]
        if not losses:
            own = [edge for call in calls for edge in call.edges]
            targets = [target for call in calls for target in call.targets]
            return (entering or _independent(targets, own)), set()
        # What a frozen network returns is none of the output, unless it is a critic's.
        given = [
            (target, number)
            for number, call in enumerate(self.calls)
            for target in call.targets
            if call.is_trained or not any_trained or any(target.origin is whole for whole in self.wholes)
        ]
        returned = [target for target, _ in given]
        inputs = [target for target in self.inputs_of_losses if not _is_made_of(target, returned)]
        softmaxes = {edge: _weighings(target) for target in self.log_softmaxes for edge in target.edges}
        # Logarithms of probabilities of which a loss is the mean are terms of it.
        returned = [
            replace(target, may_be_term=True) if softmaxes and target.origin and _below(target, softmaxes) else target
            for target in returned
        ]
        terms = {edge: Behind(number) for number, call in enumerate(self.calls) for edge in call.terms_beside()}
        givers = {number: giver for number, (_, giver) in enumerate(given, len(entering))}
        return _walk(losses, [*entering, *returned, *inputs, *self.log_softmaxes], self.inside, terms, givers)

    def find_written_out(
        self, losses: Sequence[Edge], logits: Iterable[Potential[Kept]]
    ) -> tuple[list[Target[Kept]], set[Any]]:
        """The same where :meth:`find` has none: the network writes out its loss, and does not return what that is of.

        Args:
            losses: to the losses.
            logits: the potentials of which the loss takes the sigmoid.
        """
        entering = [Target(potential.results, None, None, [potential], "") for potential in logits]
        softmaxes = [target for softmax, target in self.logarithms if not softmax.weighs]
        return _walk(losses, [*entering, *softmaxes], self.inside)

    def is_of_likelihoods(self, potential: Potential[Kept], logits: Iterable[Potential[Kept]]) -> bool:
        """Whether what enters a sigmoid of a loss is made of likelihoods, without a further weight.

        Args:
            potential: what enters it.
            logits: the potentials that enter a loss's own softmax.
        """
        entering: list[Target[Kept]] = [Target(other.results, None, other.origin, [], "") for other in logits]
        softmaxes = [*entering, *self.log_softmaxes]
        weighings = {edge: _weighings(target) for target in softmaxes for edge in target.edges}
        return bool(
            _below(Target(potential.results, None, potential.origin, [], ""), {**weighings, **self.normalisers})
        )

    def returns(self, edges: Iterable[Edge]) -> bool:
        """Whether a call of the network returned one of some tensors."""
        return not {edge for call in self.calls for edge in call.edges}.isdisjoint(edges)

    def made_of_returned(self, potential: Potential[Kept]) -> list[Target[Kept]]:
        """What the network returned and a nonlinearity outside of it takes, through whatever lies between."""
        return _walk(potential.results, [target for call in self.calls for target in call.targets], self.inside)[0]

    def is_hidden(self, potential: Potential[Kept]) -> bool:
        """Whether a call of the network that came after a nonlinearity outside of it uses its result."""
        later = [edge for call in self.calls[potential.number_of_calls :] for edge in call.edges]
        return any(edges_below(edge).intersection(potential.results) for edge in later)

    def is_behind_network(self, potential: Potential[Kept]) -> bool:
        """Whether a nonlinearity outside the network takes what is made of a network's results."""
        returned = {edge for call in self.calls for edge in call.edges}
        return any(not edges_below(edge).isdisjoint(returned) for edge in potential.results)


def _held(scalars: Iterable[tuple[weakref.ref[Tensor] | None, Edge]]) -> list[Edge]:
    return [edge for holder, edge in scalars if holder is None or holder() is not None]


def ways_to(edges: Collection[Edge], start: Edge) -> list[Way]:
    """The ways back from an edge to the first of these edges that are met on them."""
    found: dict[Way, None] = {}
    seen: set[Way] = set()
    pending = [Way(start, True)]
    for way in pending:
        (node, _), is_of_terms, _ = way
        if node is not None and way.edge != start and way.edge in edges:
            found[way] = None
        elif node is not None and way not in seen:
            seen.add(way)
            goes_on = is_of_terms and _is_of_terms(node)
            pending.extend(Way(following, goes_on) for following in node.next_functions)
    return list(found)


def _walk(
    losses: Sequence[Edge],
    targets: Sequence[Target[Kept]],
    inside: Mapping[Edge, list[Way]],
    terms: Mapping[Edge, Behind] = MappingProxyType({}),
    givers: Mapping[int, int] = MappingProxyType({}),
) -> tuple[list[Target[Kept]], set[Any]]:
    """The first targets that are met on the ways back from losses, and the nodes before them.

    What a call of the network returned is hidden by a later call that maps it, and returns a term of the loss beside
    what it made of it, such as a penalty on its gates. It is met on other ways, or where nothing else is.

    Args:
        losses: to the losses.
        targets: what may be met.
        inside: the ways inside compiled functions, from one of their results.
        terms: to what modules returned beside other tensors and may be terms of the loss.
        givers: number of the call that returned a target, by the target's number.
    """
    by_edge: dict[Edge, list[int]] = {}
    for number, target in enumerate(targets):
        for edge in (*target.edges, *target.others):
            if edge[0] is not None:
                by_edge.setdefault(edge, []).append(number)
    found: dict[int, None] = {}
    hidden: dict[int, None] = {}
    seen: set[tuple[Any, bool, Behind | None]] = set()
    seen_inside: set[tuple[Edge, bool, Behind | None]] = set()
    pending: list[tuple[Edge, bool, Behind | None]] = [(edge, True, None) for edge in losses]
    for edge, is_term, behind in pending:
        node = edge[0]
        if node is None:
            continue
        met = [number for number in by_edge.get(edge, ()) if not (is_term and targets[number].may_be_term)]
        if met:
            for number in met:
                is_hidden = behind is not None and behind.is_weighed and givers.get(number, behind.call) < behind.call
                (hidden if is_hidden else found)[number] = None
        elif is_term and behind is None:
            behind = terms.get(edge)
        if edge in inside and (edge, is_term, behind) not in seen_inside:
            seen_inside.add((edge, is_term, behind))
            ways = [way for way in inside[edge] if way.is_beside == bool(met)]
            pending.extend((way.edge, is_term and way.is_of_terms, behind) for way in ways)
        if not met and (node, is_term, behind) not in seen:
            seen.add((node, is_term, behind))
            goes_on = is_term and _is_of_terms(node)
            if behind is not None and is_map(node):
                behind = behind._replace(is_weighed=True)
            pending.extend((following, goes_on, behind) for following in node.next_functions)
    return [targets[number] for number in sorted(found or hidden)], {node for node, *_ in seen}


def _is_of_terms(node: Any) -> bool:
    name = _name(node.name())
    if name not in _OF_TERMS:
        return False
    if name in ("mul", "div", "rmul", "rdiv", "truediv"):
        return sum(following is not None for following, _ in node.next_functions) < 2
    return True


def _is_made_of(target: Target[Any], returned: Iterable[Target[Any]]) -> bool:
    """Whether the input of a loss is made of what is returned, without a further weight."""
    if target.made_of is not None:
        return any(edge in target.made_of for other in returned for edge in other.edges)
    return bool(made_of(target, {edge: _weighings(other) for other in returned for edge in other.edges}))


def made_of(target: Target[Any], weighings: Mapping[Edge, int]) -> list[Edge]:
    """Those of some edges to tensors of which the input of a loss is made without a further weight.

    Args:
        target: the input of a loss.
        weighings: by edge, how many weights have come one after another before the tensor.
    """
    origin = target.origin
    if origin is None or (origin.path is not None and not origin.is_pooled):
        return []
    return _below(target, weighings)


def _below(target: Target[Any], weighings: Mapping[Edge, int]) -> list[Edge]:
    assert target.origin is not None
    below = set().union(*map(edges_below, target.edges)).difference(target.edges)
    return [edge for edge, number in weighings.items() if edge in below and number == target.origin.weighings]


def _weighings(target: Target[Any]) -> int:
    origins = [target.origin, *(potential.origin for potential in target.potentials)]
    return max((origin.weighings for origin in origins if origin is not None), default=0)


def _name(kind: str) -> str:
    return re.sub(r"Backward\d*$", "", kind).strip("_").lower()


def _independent(returned: list[Target[Kept]], edges: list[Edge]) -> list[Target[Kept]]:
    """The targets on which no other one depends."""
    if len(returned) < 2:
        return returned
    used: set[Edge] = set()
    for node, number in edges:
        if node is not None:
            used |= edges_below((node, number)) - {(node, number)}
    return [target for target in returned if not any(edge in used for edge in target.edges)] or returned
