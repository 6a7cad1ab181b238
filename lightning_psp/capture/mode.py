"""Watching a forward pass: every call of a nonlinearity, the potential that enters it, and its layer's name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_psp.capture.activation_calls import ActivationCalls
from lightning_psp.capture.backward_calls import BackwardCalls
from lightning_psp.capture.checkpoints import Checkpoints
from lightning_psp.capture.dispatch import shared_dispatch
from lightning_psp.capture.followed_calls import FollowedCalls
from lightning_psp.capture.frames import Frame, Frames
from lightning_psp.capture.functions import TELLING, Handler, TorchFunction
from lightning_psp.capture.fused_calls import FusedCalls
from lightning_psp.capture.graph import Edge
from lightning_psp.capture.ledger import Ledger
from lightning_psp.capture.loss_calls import LossCalls, saving_functions
from lightning_psp.capture.module_calls import told_of_module_calls
from lightning_psp.capture.network_calls import NetworkCalls, has_trained_parameter
from lightning_psp.capture.nonlinearities import Nonlinearities
from lightning_psp.capture.origin import Keepable, Kept, Potential
from lightning_psp.capture.origins import Origins
from lightning_psp.capture.outputs import OutputFinder
from lightning_psp.capture.pointwise import Pointwise
from lightning_psp.capture.provenance import Provenance
from lightning_psp.capture.records import Records
from lightning_psp.capture.selection import LayerSelection
from lightning_psp.capture.settlement import Settlement
from lightning_psp.capture.shadow import Graph
from lightning_psp.capture.witness import Witness
from lightning_psp.capture.written_activations import WrittenActivations
from lightning_psp.functional.reductions import Reduction
from lightning_psp.torch_private.autograd import in_backward
from lightning_psp.torch_private.function_modes import put_back, take_off, taken_off

Other = TypeVar("Other", bound=Keepable)

_is_traced = torch.compiler.is_dynamo_compiling


class Capture(TorchFunctionMode, Generic[Kept]):
    """While entered, sees the potentials of a network; leaves nothing on its modules.

    Args:
        root: the network; layers are named relative to it.
        nonlinearities: the functions and module classes to react to.
        selection: the layers for which `keep` is called.
        keep: called with each potential, before its nonlinearity runs, as `keep(z, potential, in_place)`;
            what it returns is stored in the potential.
        tracks_units: whether `unit_dim` of the potentials is needed.
        takes_foreign: whether parameters that are none of the network's make layers, too.
        reduction: reduction of a penalty whose gradient compiled functions are to add; None if they are to give the
            potentials themselves.
        on_drop: called with what was kept and turns out to be no potential of its own.
        traced: called in place of a function while `torch.compile` traces it, as `traced(key, function, args, kwargs)`;
            code that was traced serves another capture only if its key is the same.
        is_trained: whether a network that is called is one that is trained.
    """

    def __init__(
        self,
        root: nn.Module,
        nonlinearities: Nonlinearities,
        selection: LayerSelection,
        keep: Callable[[Tensor, Potential[Kept], bool], Kept],
        *,
        tracks_units: bool,
        takes_foreign: bool,
        reduction: Reduction | None,
        traced: Callable[[str, TorchFunction, tuple[Any, ...], dict[str, Any]], Any],
        on_drop: Callable[[Potential[Kept]], None] | None = None,
        is_trained: Callable[[nn.Module], bool] = has_trained_parameter,
    ) -> None:
        super().__init__()
        self.on_outputs: Callable[[], None] | None = None  # called when the output layer of a call is known
        self.message = ""  # of what could not be seen, when the watch has ended
        self.root = root
        self.nonlinearities = nonlinearities
        self._traced = traced
        self._takes_foreign = takes_foreign
        self._is_suspended = False
        # Whether a module is running inside which nothing is followed, and whether the mode is off the stack meanwhile.
        self._is_inside_affine = self._is_off = False
        self._has_news = True  # whether anything has been seen since outputs were given
        self._place: tuple[list[Frame], bool] = ([], False)  # where it starts: running modules, and whether in a call
        self._scope = ExitStack()
        self._frames = Frames(root, nonlinearities.module_classes)
        self._origins = Origins(self._frames.name_of_parameter, takes_foreign)
        self._graph = Graph(self._origins)
        self._outputs: OutputFinder[Kept] = OutputFinder()
        self._checkpoints = Checkpoints(saving_functions(nonlinearities))
        self._ledger = Ledger(
            self._origins, self._frames, self._checkpoints, selection, keep, lambda: len(self._outputs.calls), on_drop
        )
        self._witness = Witness()
        self._settlement = Settlement(self._ledger, self._outputs, self._frames, self._origins, self._graph)
        self.records: Records[Kept] = Records(
            self._frames, self._origins, self._graph, self._ledger, self._outputs, self._witness, self._settlement
        )
        self.save = self._checkpoints.save  # what is kept of a potential inside a checkpointed function
        self._provenance = Provenance(self._origins, tracks_units)
        written = WrittenActivations(
            self._ledger, self._frames, self._origins, self._graph, self._settlement.keep_overwritten
        )
        activations = ActivationCalls(
            nonlinearities.hidden,
            ledger=self._ledger,
            frames=self._frames,
            origins=self._origins,
            graph=self._graph,
            checkpoints=self._checkpoints,
            note_other=self._provenance.note_other,
        )
        self.left_out = activations.left_out
        self.backward_calls = BackwardCalls(self._ledger, self._outputs, self._graph)
        self._fused = FusedCalls(
            nonlinearities, ledger=self._ledger, frames=self._frames, origins=self._origins, graph=self._graph
        )
        self.fused = self._fused.left_out  # the modules with kernels that show no potentials
        self._losses = LossCalls(
            nonlinearities,
            ledger=self._ledger,
            settlement=self._settlement,
            outputs=self._outputs,
            frames=self._frames,
            origins=self._origins,
            graph=self._graph,
            note_other=self._provenance.note_other,
        )
        self._network_calls = NetworkCalls(
            ledger=self._ledger,
            frames=self._frames,
            origins=self._origins,
            graph=self._graph,
            outputs=self._outputs,
            settlement=self._settlement,
            losses=self._losses,
            written=written,
            witness=self._witness,
            checkpoints=self._checkpoints,
            is_trained=is_trained,
            leaves_affine_alone=not nonlinearities.named,
            step_aside=self._step_aside,
            step_back=self._step_back,
            on_end=self._give_outputs,
        )
        self.enter_module, self.leave_module = self._network_calls.enter_module, self._network_calls.leave_module
        followed = FollowedCalls(
            provenance=self._provenance,
            pointwise=Pointwise(self._origins, tracks_units),
            written=written,
            witness=self._witness,
            settlement=self._settlement,
            outputs=self._outputs,
            ledger=self._ledger,
            frames=self._frames,
            origins=self._origins,
            graph=self._graph,
            note_logarithm=self._losses.note_logarithm,
        )

        def handlers() -> dict[TorchFunction, Handler]:
            return {
                **followed.handlers(),
                **self.backward_calls.handlers(),
                **self._losses.handlers(),
                **self._fused.handlers(),
                **activations.handlers(),
            }

        dispatch = shared_dispatch(nonlinearities, handlers)
        self._handler_numbers = dispatch.numbers
        self._handlers = dispatch.bind(
            self.backward_calls, followed, self._provenance, self._losses, self._fused, activations
        )
        self.prepare(reduction)
        self._start()

    # --- scope -------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._origins.clear()
        self._graph.clear()
        running, in_call = self._place
        self._frames.start(running)
        self._network_calls.aside = None
        self._outputs.start()
        self._losses.start()
        self._ledger.start(in_call)
        self._settlement.start()
        self._witness.start()
        self._provenance.split_weight = None

    def __enter__(self) -> Capture[Kept]:
        """Starts a new watch."""
        self._start()
        self._settlement.revises = self.on_outputs is not None
        self._has_news = True
        self._ledger.skips_without_grad = torch.is_grad_enabled()
        with ExitStack() as stack:
            stack.enter_context(told_of_module_calls(self._network_calls, self._frames.modules()))
            stack.callback(self._checkpoints.uninstall)
            self._checkpoints.install()
            super().__enter__()  # type: ignore[no-untyped-call]
            self._scope = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the watch; the potentials seen stay in `potentials`."""
        self._step_back()  # where Ctrl-C ended a module
        try:
            super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        finally:
            self._scope.close()
            self._frames.start()
        if error is None and self.on_outputs is not None:
            if self._has_news:
                self._give_outputs()
            self.message = self.unseen_message()
        self._origins.clear()
        self._graph.clear()
        self._outputs.start()
        self._ledger.outside = []

    def prepare(
        self,
        reduction: Reduction | None,
        *,
        attaches: bool = False,
        is_redirected: bool = False,
        is_run_again: bool = False,
    ) -> None:
        """Says what the next watch is for.

        Args:
            reduction: what compiled functions are to give; see the argument of the class.
            attaches: whether potentials are to lie on the path to a loss where they have no other use.
            is_redirected: whether the first call of the network stands for a step of training instead.
            is_run_again: whether compiled functions are to be such that their backward pass may run more than once.
        """
        self.reduction = reduction
        # Code compiled under one capture serves another one only if this is the same.
        self._key = f"{reduction} {self.nonlinearities.named} {is_run_again}"
        self._fused.attaches, self._network_calls.is_redirected = attaches, is_redirected

    def forget(self) -> None:
        """Lets go of the potentials."""
        self._ledger.forget()

    def close(self) -> None:
        """Lets go of everything, for good: nothing waits for cycles of references to be collected."""
        self._ledger.forget()
        vars(self).clear()

    def _step_aside(self) -> None:
        self._has_news = self._is_inside_affine = True
        self._is_off = self._is_off or take_off(self)

    def _step_back(self) -> None:
        self._is_inside_affine = False
        if self._is_off:
            self._is_off = False
            put_back(self)

    def __torch_function__(
        self, func: TorchFunction, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch in place of every torch function."""
        if _is_traced():
            return self._traced(self._key, func, args, kwargs or {})
        kwargs = kwargs or {}
        if self._is_inside_affine or func in TELLING or self._is_suspended or in_backward():
            return func(*args, **kwargs)
        self._has_news = True
        has_shadow = not self._ledger.skips_without_grad  # `torch.distributions` enables gradient now and then
        if has_shadow:
            self._graph.start_call(getattr(func, "__name__", ""), (args, kwargs))
        number = self._handler_numbers.get(func)
        if number is None:
            result = func(*args, **kwargs)
            self._provenance.note_other(args, result)
        elif self._checkpoints.regions:
            with self._checkpoints.call(func, args[0] if args else kwargs.get("input")):
                result = self._handlers[number](func, args, kwargs)
        else:
            result = self._handlers[number](func, args, kwargs)
        if has_shadow:
            self._graph.end_call(args[0] if result is None and args else result)  # of an assignment to a part
        may_be_loss = not self._origins.in_call and isinstance(result, Tensor) and result.ndim < 2
        if may_be_loss and self._outputs.is_number(result, args) and self._ledger.counts():
            self._outputs.note_scalar(result, self._graph.edge(result), self._frames.in_metric)
        return result

    # --- what was seen ---------------------------------------------------------------------------------------------

    @property
    def potentials(self) -> list[Potential[Kept]]:
        """The potentials that were seen."""
        return self._ledger.potentials

    @property
    def saw_empty_batch(self) -> bool:
        """Whether a potential without values was seen."""
        return self._ledger.saw_empty_batch

    @property
    def is_checkpointed(self) -> bool:
        """Whether a checkpointed function is running."""
        return bool(self._checkpoints.regions)

    @property
    def split_weight(self) -> str | None:
        """A parameter of which this process has computed with a part, as other processes did with the rest."""
        return self._provenance.split_weight

    def settle(self, losses: Sequence[Edge] | None = None, *, may_be_none: bool = False) -> None:
        """Finds the output layers among the potentials, and lets go of those of a loss.

        Args:
            losses: to the losses; those that were seen if None.
            may_be_none: whether what was seen may be mere statistics, which depend on no output.
        """
        with self.suspended():  # what is kept of an output may come to numbers that look like losses
            if losses is None:
                losses = self._outputs.losses(with_later=self._settlement.revises)
                self._settlement.settle(losses, may_be_none=may_be_none)
            else:
                self._settlement.settle(losses)

    def end_losses(self) -> None:
        """Lets go of what belongs to losses, all of which were settled before their backward passes."""
        with self.suspended():
            self._settlement.end()

    def possible_outputs(self, losses: Sequence[Edge]) -> list[Potential[Kept]]:
        """The potentials that are none if they do not turn out to be the output.

        Args:
            losses: to losses that the network computes itself.
        """
        return [*self._settlement.overwritten, *self._settlement.inside(losses)]

    def _give_outputs(self) -> None:
        if self.on_outputs is not None:
            self.settle()
            with taken_off(self):
                self.on_outputs()
            self._has_news = False

    def unseen_message(self, *, has_ended: bool = True) -> str:
        """What to tell of what could not be seen; empty if nothing is to be told, and before a step has ended."""
        self._witness.look(self._ledger.potentials, *self._settlement.unlisted())
        lacks_output = self._settlement.lacks_output and not self.fused
        return self._witness.message(self._ledger.potentials, lacks_output) if has_ended else ""

    def edge_of(self, tensor: Tensor) -> Edge:
        """Where a tensor is in the graph."""
        return self._graph.edge(tensor)

    # --- compiled functions ----------------------------------------------------------------------------------------

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """While open, nothing is seen."""
        self._has_news = True
        before, self._is_suspended = self._is_suspended, True
        self._network_calls.is_suspended = True
        try:
            with taken_off(self):
                yield
        finally:
            self._is_suspended = self._network_calls.is_suspended = before

    def duplicate(self, keep: Callable[[Tensor, Potential[Other], bool], Other]) -> Capture[Other]:
        """A capture with the same rules that chooses every layer, and starts at the place where this one is."""
        other = Capture(
            self.root,
            self.nonlinearities,
            LayerSelection(),
            keep,
            tracks_units=True,
            takes_foreign=self._takes_foreign,
            reduction=None,
            traced=self._traced,
            is_trained=self._network_calls.is_trained,
        )
        # In a graph, modules are left when a node of another one runs.
        other._network_calls.leaves_affine_alone = other._frames.follows_code = False
        other._place = [*self._frames.running], self._ledger.in_call
        return other
