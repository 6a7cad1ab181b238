"""The graph as a second witness: what lies between parameters and output and no potential accounts for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from lightning_psp.capture.functions import PRODUCTS, TorchFunction, name_of, with_overwriting
from lightning_psp.capture.graph import Edge, edges_below, nodes_below, nodes_between
from lightning_psp.capture.origin import Origin, Potential
from lightning_psp.torch_private.autograd import function_of, node_of

# Of which activations are made.
SUSPICIOUS = with_overwriting(
    "arctan asinh arcsinh atan cos cosh digamma erf erfc erfcx erfinv exp exp2 expm1 fmax fmin i0 i0e i1 i1e lgamma"
    " log_ndtr logaddexp logit max maximum min minimum ndtr ndtri sin sinc sinh tan __rpow__"
)
# Of which norms and distances are made, too, by sums.
OF_NORMS = with_overwriting("abs absolute __abs__ float_power hypot pow __pow__ square")
_OF_A_MODULE = "the class of a module that calls it alone"
# The functions of these packages are no activations.
_KNOWN = ("torch.", "lightning.", "lightning_fabric.", "pytorch_lightning.", "lightning_psp.")


class Suspect(NamedTuple):
    """A call of a function of which activations are made.

    Args:
        place: where it was called.
        argument: what is known of its argument.
        result: what is known of its result.
        may_be_norm: whether norms are made of it.
        edge: to its result.
        remedy: what to name as an activation.
        is_custom: whether it is a `torch.autograd.Function`, which is none of what is made of its argument.
    """

    place: str
    argument: Origin
    result: Origin
    may_be_norm: bool
    edge: Edge
    remedy: str
    is_custom: bool = False


def is_suspicious(function: TorchFunction, args: tuple[Any, ...]) -> bool:
    """Whether activations are made of a function of these arguments."""
    if not (function in SUSPICIOUS or function in OF_NORMS or _is_square(function, args)):
        return False
    is_bound = name_of(function) in ("max", "min") and any(isinstance(it, Tensor) and it.ndim == 0 for it in args)
    return not is_bound  # as of `clamp`


def _is_square(function: TorchFunction, args: tuple[Any, ...]) -> bool:
    return function in PRODUCTS and len(args) == 2 and args[0] is args[1]


class Witness:
    """Collects what may be an activation that nobody sees, and tells what was none of the potentials."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Forgets everything."""
        self._suspects: list[Suspect] = []
        self._inside: list[tuple[str, str, Sequence[Edge], Sequence[Origin]]] = []  # of compiled functions
        self._places: dict[Any, str] = {}  # of nodes of custom functions
        self._accounted: set[Any] = set()  # the nodes of these that are parts of activations
        self._unseen: dict[str, str] = {}  # what no potential accounts for, and what may be named for it
        self._unlisted: dict[str, None] = {}  # what has weights that a loss reaches past every layer
        self.weights: set[str] = set()  # names of those that were used
        self._depth = 0  # how many weights have come one after another, those without a name too

    def note_suspect(self, function: TorchFunction, place: str, argument: Origin, result: Origin, edge: Edge) -> None:
        """Notes a call of a suspicious function; see :class:`Suspect`."""
        may_be_norm = function not in SUSPICIOUS
        # Naming these functions would make layers of other calls of them, too.
        has_other_uses = function in PRODUCTS or name_of(function) in ("max", "min")
        remedy = _OF_A_MODULE if has_other_uses else _dotted(name_of(function))
        self._suspects.append(Suspect(place, argument, result, may_be_norm, edge, remedy))

    def note_custom(self, path: str, argument: Origin, result: Origin, edge: Edge) -> None:
        """Notes a `torch.autograd.Function` that a compiled module at a path calls."""
        place = f"a torch.autograd.Function in {path or 'the network'}"
        self._suspects.append(Suspect(place, argument, result, False, edge, _OF_A_MODULE, is_custom=True))

    def note_weights(self, names: Iterable[str]) -> None:
        """Notes the names of weights that were used."""
        self.weights.update(names)

    def note_depth(self, number: int) -> None:
        """Notes how many weights have come one after another before a tensor that one of them made."""
        self._depth = max(self._depth, number)

    def note_unseen(self, place: str, remedy: str, edges: Sequence[Edge], kin: Sequence[Origin]) -> None:
        """Notes a call inside a compiled function that no potential in there accounts for.

        Args:
            place: where it is.
            remedy: what to name as an activation.
            edges: to what depends on its result.
            kin: what its argument is a function of, value by value, and what is one of its result.
        """
        self._inside.append((place, remedy, edges, kin))

    def unaccounted(self) -> list[Suspect]:
        """The suspicious calls that no potential accounts for."""
        return [
            suspect
            for suspect in self._suspects
            if not (suspect.argument.values.potentials if suspect.is_custom else _has_potential(suspect.argument))
            and not (suspect.may_be_norm and (suspect.result.is_pooled or suspect.argument.is_pooled))
        ]

    def note_module(self, output: Tensor, path: str) -> None:
        """Notes what the module at a path returned."""
        node = node_of(output)
        if _is_custom(node):
            self._places.setdefault(node, path)

    def look(
        self, potentials: Sequence[Potential[Any]], unlisted: Iterable[str] = (), functions: Iterable[str] = ()
    ) -> None:
        """Looks for what could not be seen; before each backward pass, which lets go of the ways to it.

        Args:
            potentials: all potentials.
            unlisted: what has weights that the loss reaches past every layer.
            functions: names of each `torch.autograd.Function` that it reaches so and that is given weights.
        """
        outputs = [edge for potential in potentials if potential.is_output for edge in potential.results]
        self._unseen.update({**self.unseen(potentials, outputs), **dict.fromkeys(functions, _OF_A_MODULE)})
        self._unlisted.update(dict.fromkeys(unlisted))

    def message(self, potentials: Sequence[Potential[Any]], lacks_output: bool) -> str:
        """What to tell of what could not be seen; empty if nothing is to be told.

        Args:
            potentials: all potentials.
            lacks_output: whether there is a loss, and nothing was found where it begins.
        """
        has_more = any(potential.enters_nonlinearity for potential in potentials)
        return unseen_message(
            self._unseen,
            sees_output_alone=bool(potentials) and not has_more and max(len(self.weights), self._depth) > 1,
            lacks_output=lacks_output,
            unlisted=[*self._unlisted],
        )

    def unseen(self, potentials: Sequence[Potential[Any]], outputs: Iterable[Edge]) -> dict[str, str]:
        """What no potential accounts for: where it is called, and what may be named as an activation.

        Args:
            potentials: all potentials.
            outputs: to the output layers.
        """
        starts = list(dict.fromkeys(outputs))
        below = set().union(*map(edges_below, starts)) if self._suspects or self._inside else set()
        found = {suspect.place: suspect.remedy for suspect in self.unaccounted() if suspect.edge in below}
        for call, remedy, edges, kin in self._inside:
            is_known = any(origin.potential is not None or _has_potential(origin) for origin in kin)
            if not is_known and not below.isdisjoint(edges):
                found[call] = remedy
        below_outputs = nodes_below([node for node, _ in starts])
        nodes = {node for node in below_outputs if _is_custom(node) and is_foreign_function(node)}
        if nodes:
            self._accounted |= _accounted_for(potentials)
        for node in nodes - self._accounted:
            place = self._places.get(node)
            function = function_of(node)
            found[f"{function.__qualname__} in {place or 'the network'}"] = _OF_A_MODULE
        return found


def _dotted(name: str) -> str:
    return f"'torch.{name}'" if hasattr(torch, name) else f"'torch.special.{name}'"


def _has_potential(origin: Origin | None) -> bool:
    while origin is not None:
        if origin.values.potentials or origin.is_returned:
            return True
        origin = origin.whole if origin.parent is None else origin.parent
    return False


def _accounted_for(potentials: Sequence[Potential[Any]]) -> set[Any]:
    """The nodes between potentials and what their nonlinearities gave."""
    results = [[node for node, _ in potential.results] for potential in potentials]
    ends = [potential.entering for potential in potentials]
    stops = {node for node in (*ends, *chain.from_iterable(results)) if node is not None}
    pairs = zip(results, ends, strict=True)
    return set().union(*(nodes_between(given, end, stops) for given, end in pairs if end is not None))


def _is_custom(node: Any) -> bool:
    return isinstance(node, BackwardCFunction)


def is_foreign_function(node: Any) -> bool:
    """Whether a node is of a `torch.autograd.Function` that is none of torch's, Lightning's or this package's."""
    return _is_custom(node) and not f"{function_of(node).__module__}.".startswith(_KNOWN)


def unseen_message(
    unseen: Mapping[str, str], *, sees_output_alone: bool, lacks_output: bool, unlisted: Sequence[str] = ()
) -> str:
    """What to tell of a network that could not be seen whole; empty where there is nothing to tell.

    Args:
        unseen: where a function is called that no potential accounts for, and what to name for it.
        sees_output_alone: whether a network of several layers shows none but its output.
        lacks_output: whether there is a loss, and nothing was found where it begins.
        unlisted: what has weights that the loss reaches past every layer.

    Example:
        >>> unseen_message({"block.exp": "'torch.exp'"}, sees_output_alone=False, lacks_output=False)
        "No layer was found for block.exp. If that is a nonlinearity, name it: activations=('torch.exp',)."
    """
    sentences = []
    if sees_output_alone:
        sentences.append("Of a network of several layers, only the output was found.")
    if unseen:
        names = ", ".join(sorted(set(unseen.values())))
        sentences.append(f"No layer was found for {', '.join(unseen)}.")
        sentences.append(f"If that is a nonlinearity, name it: activations=({names},).")
    elif sees_output_alone:
        sentences.append("If it has nonlinearities, name their module classes or torch functions: activations=(…,).")
    if lacks_output:
        sentences.append(
            "No output layer was found: the network returns no tensor that the loss is computed from, and its loss is"
            " none of torch's functions. Have `forward` return the prediction, in a tuple, dict or dataclass."
        )
    if unlisted:
        sentences.append(
            f"The loss reaches {', '.join(unlisted)} past every layer. If a prediction comes from there, have `forward`"
            " return it, in a tuple, dict or dataclass: it is an output layer then."
        )
    return " ".join(sentences)
