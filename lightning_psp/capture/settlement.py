"""Deciding, once a loss is known, which potentials are the output layer's and which belong to the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Generic

import torch
from torch import Tensor

from lightning_psp.capture.frames import Frames
from lightning_psp.capture.graph import Edge, edges_below
from lightning_psp.capture.ledger import Ledger
from lightning_psp.capture.origin import Kept, Origin, Potential, arrange
from lightning_psp.capture.origins import Origins
from lightning_psp.capture.outputs import OutputFinder, Target, ways_to
from lightning_psp.capture.recurrent import RECURRENT_MODULES
from lightning_psp.capture.shadow import Graph
from lightning_psp.capture.unlisted import past_layers

_SIGMOIDS = ("sigmoid", "softplus", "logsigmoid")


class Settlement(Generic[Kept]):
    """Marks the output layers among the potentials, and lets go of those of a loss.

    Args:
        ledger: the potentials.
        outputs: what was seen of outputs and losses.
        frames: the modules.
        origins: what is known of tensors.
        graph: the graph in which they are.
    """

    def __init__(
        self,
        ledger: Ledger[Kept],
        outputs: OutputFinder[Kept],
        frames: Frames,
        origins: Origins,
        graph: Graph,
    ) -> None:
        self.revises = False  # whether what was found for an earlier loss is found anew for the next one
        self._ledger = ledger
        self._outputs = outputs
        self._frames = frames
        self._origins = origins
        self._graph = graph
        self.start()

    def start(self) -> None:
        """Starts a new watch."""
        self._has_loss = self._has_recurrent_output = False
        self.overwritten: list[Potential[Kept]] = []  # returned by a network and then overwritten
        self._settled: list[tuple[Potential[Kept], bool]] = []  # taken for output layers, and whether for this alone
        self._marked: list[Potential[Kept]] = []  # the output layers

    @property
    def lacks_output(self) -> bool:
        """Whether there are layers and a loss, and nothing was found where it begins."""
        has_output = any(potential.is_output for potential in self._ledger.potentials) or self._has_recurrent_output
        return bool(self._ledger.potentials) and self._has_loss and not has_output

    def unlisted(self) -> tuple[list[str], list[str]]:
        """What the loss reaches past every layer: what has weights, and `torch.autograd.Function`s given some."""
        name = self._frames.name_of_parameter
        weights, functions = past_layers(self._losses_to_follow(), self._ledger.potentials)
        names = [found.removesuffix(".weight") for found in map(name, weights) if found is not None]
        of_functions = [
            f"{function.__qualname__} of the weights in {found.rpartition('.')[0] or 'the network'}"
            for function, weight in functions
            if (found := name(weight)) is not None
        ]
        return names, of_functions

    def _losses_to_follow(self) -> Sequence[Edge]:
        """The losses from which what no layer accounts for can be told."""
        potentials, losses = self._ledger.potentials, self._outputs.settled
        # A gradient in a loss is made of weights once more, and what has no sample is no layer.
        if self._ledger.saw_empty_batch or any(potential.is_differentiated for potential in potentials):
            return []
        if not torch.is_grad_enabled() or not any(potential.is_output for potential in potentials):
            return []
        return losses if len(losses) == 1 else []  # of what earlier ones reach, their backward passes have let go

    def save_overwritten(self, origin: Origin, tensor: Tensor, stays: bool) -> None:
        """Keeps what a network returned, or what may be logits, before it is overwritten.

        Args:
            origin: what is known of the tensor.
            tensor: the tensor.
            stays: whether what comes in its place stands for it: a multiple, or the same with a part masked.
        """
        if stays:  # of a part: the whole has other values then, too
            tensor = self._origins.whole_of(tensor)
            origin = self._origins.of(tensor)
        # Inside the network, what a module gives may be logits; scores of attention are none.
        is_whole = not self._ledger.in_call or (origin.path is not None and not origin.is_bent)
        may_be = origin.is_returned or (stays and is_whole and origin.is_made)
        known: list[Potential[Kept]] = origin.values.potentials
        if may_be and not known and self._ledger.is_potential(tensor):
            self.overwritten.append(self._ledger.add(tensor, "output", True, is_output=True))
        for potential in known:
            is_read = potential.enters_loss or potential.enters_nonlinearity
            is_saved = stays or (origin.is_returned and not is_read)  # else that it changes is an error
            if is_saved and potential.is_output and potential.kept is not None:
                potential.kept.preserve(tensor)

    def keep_overwritten(self, potential: Potential[Kept]) -> None:
        """Keeps what was overwritten by a multiple of it, or masked, in case that this turns out to be the output."""
        potential.enters_nonlinearity = False
        self.overwritten.append(potential)

    def returned(self, tensor: Tensor, path: str, *, is_beside_others: bool) -> Target[Kept] | None:
        """What a tensor stands for that the module at a path returned, if it may be an output layer.

        Args:
            tensor: the tensor.
            path: of the module.
            is_beside_others: whether it returned further ones.
        """
        target = self.target(tensor, path)
        if target is None:
            return None
        source = self._origins.of(tensor).source
        if is_beside_others and source is not None and source.is_around:
            target = replace(target, may_be_term=True)  # a module that only hands it on does not make it a prediction
        # A loss that the network writes out may be made of it before it got the shape in which it is returned.
        others = [self._graph.edge(other) for other in self._origins.with_values_of(tensor)]
        return replace(target, others=others) if others else target

    def target(self, tensor: Tensor, path: str | None) -> Target[Kept] | None:
        """What a tensor stands for, if it may be an output layer.

        Args:
            tensor: the tensor.
            path: of the module that returned it; None if it enters a loss of the network's own.
        """
        edge = self._graph.edge(tensor)
        if tensor.ndim == 0 or edge[0] is None:
            return None
        origin, giver = self._origins.of(tensor), path or ""
        if origin.is_weight:
            return None
        is_term = origin.path is None or origin.is_bent
        root = self._origins.root(origin)
        if root.potential is not None:
            return Target([edge], None, None, [root.potential], giver)
        softmax = root.softmax
        if softmax is not None and softmax.entering is not None:
            softmax.weighs = False  # what it gave is returned, whatever else it did
            return self.target_of(edge, self._origins.whole_of(softmax.entering), path, False)
        if root is not origin and root.values.potentials:
            return Target([edge], None, None, root.values.potentials[:1], giver, is_term)
        top = self._origins.top(root)
        if top.reference() is None and top.values.potentials:  # the whole is gone, but for what was kept of it
            return Target([edge], None, None, top.values.potentials[:1], giver, is_term)
        whole = None if root.is_bent and root.whole is None else self._origins.whole(root)
        return self.target_of(edge, self._origins.whole_of(tensor) if whole is None else whole, path, is_term)

    def target_of(self, edge: Edge, tensor: Tensor, path: str | None, may_be_term: bool) -> Target[Kept]:
        """A tensor that may be an output layer."""
        origin = self._origins.of(tensor)
        origin.is_returned = True
        origin.giver = origin.giver if path is None else path
        return Target([edge], tensor, origin, [], path or "", may_be_term)

    def settle(self, losses: Sequence[Edge], *, may_be_none: bool = False) -> None:
        """Finds the output layers, and which nonlinearities outside the network belong to a loss.

        Args:
            losses: to what is known to be a loss; none where nothing is.
            may_be_none: whether these may be mere statistics, which depend on no output.
        """
        # A watch that goes on penalising keeps what it found for an earlier loss.
        for potential, is_output_alone in self._settled if self.revises else ():
            if is_output_alone and not potential.enters_loss:
                assert potential.origin is not None
                if potential.origin.reference() is None:  # overwritten since: it could not be found again
                    self.overwritten.append(potential)
                else:
                    self._ledger.drop(potential)
            else:
                potential.is_output = potential.enters_loss
        self._settled = [] if self.revises else self._settled
        self._ledger.take_up(self.overwritten)
        behind = self._behind_network()
        entering = [potential for potential in behind if potential.label in _SIGMOIDS]
        own = [potential for potential in entering if _is_computed(potential)]
        self._outputs.wholes.extend(origin for potential in entering for origin in _and_passes(potential.origin))
        self._drop_parts_of_outputs(self.overwritten)  # of which the logits take over what was made
        logits = [potential for potential in self._ledger.potentials if potential.enters_loss]
        own = [potential for potential in own if not self._outputs.is_of_likelihoods(potential, logits)]
        found, between = self._outputs.find(losses, [*logits, *own])
        # A likelihood takes sigmoids of the difference to the target, and others of what the network gave as it is.
        inner = [potential for potential in own if self._is_reached_beside(potential, found)]
        if inner:
            own = [potential for potential in own if potential not in inner]
            found, between = self._outputs.find(losses, [*logits, *own])
        if losses and not found:
            found, between = self._outputs.find_written_out(losses, self._logits_inside(losses))
        if may_be_none and not found and not self._outputs.returns(losses):
            losses = []
            found, between = self._outputs.find(losses, [*logits, *own])
        self._has_loss = self._has_loss or bool(losses)
        self._marked = [] if self.revises else self._marked
        self._marked += [potential for target in found for potential in self._mark(target)]
        self._drop_metrics(losses)
        self._drop_those_of_losses([*behind, *self._inside_losses(between, found)])

    def end(self) -> None:
        """Lets go of what belongs to losses whose backward passes have run: these let go of the ways to the output."""
        self._drop_those_of_losses(self._behind_network())

    def _behind_network(self) -> list[Potential[Kept]]:
        """The nonlinearities that were called outside of the network with what is made of its results."""
        outside = [potential for potential in self._ledger.outside if not self._outputs.is_hidden(potential)]
        return [potential for potential in outside if self._outputs.is_behind_network(potential)]

    def _drop_those_of_losses(self, potentials: Sequence[Potential[Kept]]) -> None:
        for potential in potentials:
            if not potential.is_output:
                self._ledger.drop(potential)
        self._let_go_of_overwritten(self._marked)
        self._drop_parts_of_outputs()
        arrange(self._ledger.potentials)

    def _is_reached_beside(self, potential: Potential[Kept], found: Sequence[Target[Kept]]) -> bool:
        """Whether what enters a sigmoid is made of results of one module that the loss takes in another way, too."""
        returned = self._outputs.made_of_returned(potential)
        outputs = {values for target in found for values in self._values_of(target)}
        is_of_one = len({target.path for target in returned}) == 1
        return is_of_one and all(not outputs.isdisjoint(self._values_of(target)) for target in returned)

    def _values_of(self, target: Target[Kept]) -> set[int]:
        """Tells the tensors apart of which an output is a part or a multiple."""
        origins = [target.origin, *(potential.origin for potential in target.potentials)]
        return {id(self._origins.top(origin).values) for origin in origins if origin is not None}

    def _let_go_of_overwritten(self, marked: Sequence[Potential[Kept]]) -> None:
        """Lets go of what was kept before it was overwritten and is none of the output."""
        for potential in self.overwritten:
            if potential not in marked and self.revises:
                self._ledger.set_aside(potential)  # a later loss may show that it is
            elif potential not in marked:
                self._ledger.drop(potential)
        if not self.revises:
            self.overwritten = [potential for potential in self.overwritten if potential in marked]

    def _drop_parts_of_outputs(self, unknown: Sequence[Potential[Kept]] = ()) -> None:
        """A part of the output that a function turns into a parameter, such as a scale, is no layer of its own.

        Args:
            unknown: of which it is not known yet whether they are output layers.
        """
        marked = [
            potential
            for potential in self._ledger.potentials
            if potential.is_output and (potential.enters_loss or potential not in unknown)
        ]
        outputs = {id(potential.origin): potential for potential in marked}
        # What they stand for may have been overwritten with them.
        for potential in marked:
            for whole in _and_wholes(potential.origin):
                outputs.setdefault(id(whole), potential)
        for potential in [*self._ledger.potentials]:
            origin = None if potential.origin is None else potential.origin.whole
            while origin is not None and id(origin) not in outputs:
                origin = origin.whole
            if origin is not None and outputs[id(origin)] is not potential:
                outputs[id(origin)].results.extend(potential.results)
                if potential.origin is not None:
                    potential.origin.is_returned = True
                self._ledger.drop(potential)

    def _drop_metrics(self, losses: Sequence[Edge]) -> None:
        """Of a network that a metric holds, no layer counts that the loss does not reach."""
        of_metrics = [potential for potential in self._ledger.potentials if potential.is_of_metric]
        if of_metrics and losses:
            below = {edge for loss in losses for edge in edges_below(loss) if edge[0] is not None}
            reached = {potential.layer for potential in of_metrics if not below.isdisjoint(potential.results)}
            for potential in of_metrics:
                if potential.layer not in reached:
                    self._ledger.drop(potential)

    def _logits_inside(self, losses: Sequence[Edge]) -> list[Potential[Kept]]:
        """Of which a loss that the network writes out takes the sigmoid: its sums and means are made of the result."""
        sigmoids = [potential for potential in self._ledger.potentials if potential.label in _SIGMOIDS]
        by_edge = {edge: number for number, potential in enumerate(sigmoids) for edge in potential.results}
        ways = [way for loss in losses for way in ways_to(by_edge, loss)] if by_edge else []
        used = {by_edge[way.edge] for way in ways if not way.is_of_terms}
        logits = []
        for number in sorted({by_edge[way.edge] for way in ways} - used):
            origin = sigmoids[number].origin
            if _is_normaliser(sigmoids[number]):
                self._ledger.drop(sigmoids[number])
            elif origin is not None and origin.weighings == self._origins.most_weighings:  # no weights come after it
                logits.append(sigmoids[number])
        return logits

    def inside(self, losses: Sequence[Edge]) -> list[Potential[Kept]]:
        """The nonlinearities of losses that a running network computes itself."""
        logits = [potential for potential in self._ledger.potentials if potential.enters_loss]
        found, between = self._outputs.find(losses, logits)
        return self._inside_losses(between, found)

    def _inside_losses(self, between: set[Any], found: Sequence[Target[Kept]]) -> list[Potential[Kept]]:
        """The nonlinearities of a loss that the network computes itself: no weights come after their outputs."""
        inside = [
            potential
            for potential in self._ledger.potentials
            if not potential.is_output and any(edge[0] in between for edge in potential.results)
        ]
        if not inside or not found:
            return []
        depths: dict[Edge, int] = {}  # how many weights have come before an output, by the edges to it
        for target in found:
            origins = [target.origin, *(potential.origin for potential in target.potentials)]
            depth = max((origin.weighings for origin in origins if origin is not None), default=0)
            edges = [*target.edges, *(p.edge for p in target.potentials if p.edge is not None)]
            if target.tensor is not None:
                edges.append(self._graph.edge(target.tensor))
            for edge in edges:
                if edge[0] is not None:
                    depths[edge] = max(depth, depths.get(edge, 0))
        below = set().union(*map(edges_below, depths))

        def is_inner(potential: Potential[Kept]) -> bool:
            if potential.origin is None or not below.isdisjoint(potential.results):
                return False
            made_of = set().union(*map(edges_below, potential.results)) & depths.keys()
            return potential.origin.weighings <= max((depths[edge] for edge in made_of), default=-1)

        return [potential for potential in inside if is_inner(potential)]

    def _mark(self, target: Target[Kept]) -> list[Potential[Kept]]:
        """Takes a tensor for the output layer."""
        potentials = [self.whole_potential(potential) for potential in target.potentials]
        if target.tensor is not None and target.origin is not None:
            origin = target.origin
            if origin.path is not None and isinstance(self._frames.module_at(origin.path), RECURRENT_MODULES):
                self._has_recurrent_output = True
                return []
            potentials = origin.values.potentials
            if not potentials:
                if origin.reference() is not target.tensor or not self._ledger.is_potential(target.tensor):
                    return []
                potential = self._ledger.add(target.tensor, "output", False, is_output=True)
                self._settled.append((potential, True))
                potential.results.extend([self._graph.edge(target.tensor), *target.edges])
                return [potential]
        for potential in potentials:
            # A nonlinearity that was called with it, too, may be none of the loss's.
            potential.results.extend([*target.edges])
            if not potential.is_output:
                potential.is_output = True
                self._settled.append((potential, False))
        return potentials

    def whole_potential(self, potential: Potential[Kept]) -> Potential[Kept]:
        """The potential of which this one, which turned out to be an output, is a part or a multiple."""
        assert potential.origin is not None
        top = self._origins.top(potential.origin)
        values, whole = top.values, top.reference()
        if potential in values.potentials:
            return potential
        if not values.potentials:
            if whole is None or not self._ledger.is_potential(whole):
                return potential
            self._ledger.add(whole, potential.label, False, is_output=True)
        found: Potential[Kept] = values.potentials[0]
        found.results.extend(potential.results)
        self._ledger.drop(potential)
        return found


def _is_computed(potential: Potential[Any]) -> bool:
    """Whether what enters a loss's sigmoid is more than a part or a multiple of what a network returned."""
    is_returned = any(origin.is_returned for origin in _and_passes(potential.origin))
    return not is_returned and not _is_normaliser(potential)


def _is_normaliser(potential: Potential[Any]) -> bool:
    """Whether it is the logarithm of a sum of exponentials, of which a softmax is made."""
    return any(origin.normalises is not None for origin in _and_wholes(potential.origin))


def _and_wholes(origin: Origin | None) -> Iterator[Origin]:
    """A tensor, and those of which it is a view, a part or a multiple, one by one."""
    while origin is not None:
        yield origin
        origin = origin.whole


def _and_passes(origin: Origin | None) -> Iterator[Origin]:
    """The same with the passes that one of them joins, and what these stand for."""
    for whole in _and_wholes(origin):
        yield from (whole, *(found for one in whole.passes for found in _and_wholes(one)))
