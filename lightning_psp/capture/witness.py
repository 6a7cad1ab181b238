"""The graph as a second witness: what lies between parameters and output and no potential accounts for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from lightning_psp.capture.functions import TorchFunction, name_of, with_overwriting
from lightning_psp.capture.graph import Edge, edges_below, nodes_below
from lightning_psp.capture.origin import Origin, Potential
from lightning_psp.torch_private.autograd import function_of, node_of

# Of which activations are made.
SUSPICIOUS = with_overwriting(
    "arctan asinh arcsinh atan cos cosh erf erfc exp exp2 expm1 logaddexp maximum minimum sin sinc sinh tan __rpow__"
)
# Of which norms and distances are made, too, by sums.
OF_NORMS = with_overwriting("abs absolute __abs__ float_power pow __pow__ square")
# The functions of these packages are no activations.
_KNOWN = ("torch.", "lightning.", "lightning_fabric.", "pytorch_lightning.", "lightning_psp.")


class Suspect(NamedTuple):
    """A call of a function of which activations are made.

    Args:
        name: of the function.
        place: where it was called.
        argument: what is known of its argument.
        result: what is known of its result.
        may_be_norm: whether norms are made of it.
        edge: to its result.
    """

    name: str
    place: str
    argument: Origin
    result: Origin
    may_be_norm: bool
    edge: Edge


def is_suspicious(function: TorchFunction) -> bool:
    """Whether activations are made of a function."""
    return function in SUSPICIOUS or function in OF_NORMS


class Witness:
    """Collects what may be an activation that nobody sees, and tells what was none of the potentials."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Forgets everything."""
        self._suspects: list[Suspect] = []
        self._places: dict[Any, str] = {}  # of nodes of custom functions
        self.weights: set[str] = set()  # names of those that were used

    def note_suspect(self, function: TorchFunction, place: str, argument: Origin, result: Origin, edge: Edge) -> None:
        """Notes a call of a suspicious function; see :class:`Suspect`."""
        self._suspects.append(Suspect(name_of(function), place, argument, result, function in OF_NORMS, edge))

    def note_module(self, output: Tensor, path: str) -> None:
        """Notes what the module at a path returned."""
        node = node_of(output)
        if isinstance(node, BackwardCFunction):
            self._places.setdefault(node, path)

    def message(self, potentials: Sequence[Potential[Any]], lacks_output: bool) -> str:
        """What to tell of what could not be seen; empty if nothing is to be told.

        Args:
            potentials: all potentials.
            lacks_output: whether there is a loss, and nothing was found where it begins.
        """
        outputs = [edge for potential in potentials if potential.is_output for edge in potential.results]
        has_more = any(potential.enters_nonlinearity for potential in potentials)
        return unseen_message(
            self.unseen(potentials, outputs),
            sees_output_alone=bool(potentials) and not has_more and len(self.weights) > 1,
            lacks_output=lacks_output,
        )

    def unseen(self, potentials: Sequence[Potential[Any]], outputs: Iterable[Edge]) -> dict[str, str]:
        """What no potential accounts for: where it is called, and what may be named as an activation.

        Args:
            potentials: all potentials.
            outputs: to the output layers.
        """
        starts = list(dict.fromkeys(outputs))
        below = set().union(*map(edges_below, starts)) if self._suspects else set()
        found = {
            suspect.place: f"'torch.{suspect.name}'"
            for suspect in self._suspects
            if suspect.edge in below
            and not _has_potential(suspect.argument)
            and not (suspect.may_be_norm and (suspect.result.is_pooled or suspect.argument.is_pooled))
        }
        below_outputs = nodes_below([node for node, _ in starts])
        nodes = {node for node in below_outputs if isinstance(node, BackwardCFunction) and _is_foreign(node)}
        if nodes:
            nodes -= _accounted_for(potentials)
        for node in nodes:
            place = self._places.get(node)
            function = function_of(node)
            found[f"{function.__qualname__} in {place or 'the network'}"] = "the class of a module that calls it alone"
        return found


def _has_potential(origin: Origin | None) -> bool:
    while origin is not None:
        if origin.values.potentials or origin.is_returned:
            return True
        origin = origin.whole if origin.parent is None else origin.parent
    return False


def _accounted_for(potentials: Iterable[Potential[Any]]) -> set[Any]:
    """The nodes between potentials and what their nonlinearities gave."""
    found: set[Any] = set()
    for potential in potentials:
        origin = potential.origin
        z = None if origin is None else origin.reference()
        end: Any = None if z is None else z.grad_fn
        results: list[Any] = [node for node, _ in potential.results]
        pending = [node for node in results if isinstance(node, BackwardCFunction)]
        for node in pending:
            if node is not None and node is not end and node not in found:
                found.add(node)
                pending.extend(following for following, _ in node.next_functions)
    return found


def _is_foreign(node: Any) -> bool:
    return not f"{function_of(node).__module__}.".startswith(_KNOWN)


def unseen_message(unseen: Mapping[str, str], *, sees_output_alone: bool, lacks_output: bool) -> str:
    """What to tell of a network that could not be seen whole; empty where there is nothing to tell.

    Args:
        unseen: where a function is called that no potential accounts for, and what to name for it.
        sees_output_alone: whether a network of several layers shows none but its output.
        lacks_output: whether there is a loss, and nothing was found where it begins.

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
    return " ".join(sentences)
