"""Watching the steps that a trainer runs, and penalising the potentials seen in a training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_psp.callback.entropy_measure import EntropyMeasure
from lightning_psp.callback.histograms import sample
from lightning_psp.callback.layer_metrics import LayerSums
from lightning_psp.callback.settings import Settings
from lightning_psp.callback.step import Additions, Step, StepLayers
from lightning_psp.callback.trainer_state import refuse_split_units
from lightning_psp.capture.graph import nodes_below
from lightning_psp.capture.mode import Capture
from lightning_psp.capture.nonlinearities import Nonlinearities
from lightning_psp.capture.origin import Potential
from lightning_psp.compilation.listening import announce_graph, told_of_graphs
from lightning_psp.functional.reductions import RULES
from lightning_psp.functional.totals import Total, add_up, add_up_weighted, read_on_processor
from lightning_psp.gradient.batch_means import BatchMeans
from lightning_psp.gradient.class_states import BatchClasses, ClassStates
from lightning_psp.gradient.compiled_tap import AnyTap, CompiledTap
from lightning_psp.gradient.injection import Injector, Terms
from lightning_psp.gradient.loss_scale import LossScale
from lightning_psp.gradient.tap import Tap
from lightning_psp.lightnings.log_calls import leave_log_unwatched
from lightning_psp.lightnings.trained_networks import TrainedNetworks
from lightning_psp.torch_private.autograd import function_of
from lightning_psp.torch_private.compiler import keep_saved_tensors, takes_saved_tensors

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.strategies import Strategy

_STEPS = ("training_step", "validation_step", "test_step")
_WRAPPED = (*_STEPS, "teardown")


class Watch:
    """Sees the potentials of every step of a trainer from its making until `close`.

    The steps are wrapped on the trainer's strategy; the user's modules are left as they are. A step's potentials are
    kept until `finish`, at the latest until the next step starts.

    Args:
        trainer: the trainer whose steps are watched.
        module: the user's module; layers are named relative to it.
        nonlinearities: the functions and module classes to react to.
        settings: what the user asked for.
        next_lam: gives λ of the training step that is about to start.
        measure: counts the states of units in evaluations.
        on_unseen_backward: called when a training step runs a backward pass that was not announced by `arm`.
        leaves: whether the trainer has this watch no longer, which is asked before every step and at the trainer's end;
            ends the watch if so.
        measures: whether gradients are measured before backward passes, so that compiled ones have to run again.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        nonlinearities: Nonlinearities,
        settings: Settings,
        *,
        next_lam: Callable[[], float],
        measure: EntropyMeasure,
        on_unseen_backward: Callable[[], None],
        leaves: Callable[[], bool],
        measures: bool,
    ) -> None:
        self.takes_samples = False  # whether the next training step has values sampled for histograms
        self.is_measured = False  # whether gradients are measured before the next training step's backward pass
        self.lam = 0.0  # of the last training step
        self._measures = measures
        self._trainer = trainer
        self._module = module
        self._settings = settings
        self._next_lam = next_lam
        self._on_unseen_backward = on_unseen_backward
        self._measure = measure
        self._classes: BatchClasses | None = None  # of the batch of the running training step
        self._witnessed: set[tuple[int, bool, frozenset[str]]] = set()  # the layers of passes whose graph was searched
        self._injector = Injector(
            settings.reduction,
            settings.layer_factor,
            settings.entropy.weight,
            BatchMeans(trainer.world_size, trainer.strategy.root_device),
        )
        self._unseen = ""  # what to tell of what could not be seen
        self._is_training = False
        self._is_running = False
        self._forget()
        self._capture: Capture[AnyTap] = Capture(
            module,
            nonlinearities,
            settings.selection,
            self._keep,
            tracks_units=RULES[settings.reduction].tells_units or measure.unit == "channel",
            takes_foreign=True,
            reduction=settings.reduction,
            traced=announce_graph,
            on_drop=measure.discard,
            is_trained=TrainedNetworks(module),
        )
        self._capture.backward_calls.on_backward = self._check_backward
        self._strategy = trainer.strategy
        for name in _WRAPPED:
            former = vars(self._strategy).get(name)
            if isinstance(former, _WatchedStep):
                former.leaves()
        runs = {"training_step": self._run_training_step, "teardown": self._run_teardown}
        self._wrapped = {
            name: _WatchedStep(runs.get(name, self._run_evaluation_step), self._strategy, name, leaves)
            for name in _WRAPPED
        }
        vars(self._strategy).update(self._wrapped)
        self._watch_log_again = leave_log_unwatched(module)

    def close(self) -> None:
        """Gives the strategy its own steps back and lets go of everything."""
        for name, wrapped in self._wrapped.items():
            if vars(self._strategy).get(name) is wrapped:
                del vars(self._strategy)[name]
        self._watch_log_again()
        self._release()

    def _release(self) -> None:
        """Lets go of everything kept of the last step."""
        adds_gradients = self._is_training and self.adds_gradients
        self._injector.forget(self._taps() if adds_gradients else [])
        self._capture.forget()
        self._forget()

    def _forget(self) -> None:
        self._passes: list[tuple[Total, Terms]] = []  # the loss of each backward pass so far, and what was added to it
        self._samples: list[tuple[Tap, Tensor]] = []
        self._unsampled: dict[str, None] = {}

    # --- what a step has shown -------------------------------------------------------------------------------------

    @property
    def saw_empty_batch(self) -> bool:
        """Whether a potential without values was seen in the last step."""
        return self._capture.saw_empty_batch

    def layers(self) -> StepLayers:
        """The layers of the last step."""
        selection = self._settings.selection
        return StepLayers(
            seen=tuple(dict.fromkeys(potential.layer for potential in self._capture.potentials)),
            chosen=tuple(dict.fromkeys(tap.layer for tap in self._taps())),
            left_out=tuple(layer for layer in self._capture.left_out if selection.selects(layer)),
            fused=tuple(self._capture.fused),
            is_empty=self.saw_empty_batch,
        )

    def finish(self) -> Step:
        """Lets go of the last step, and returns what it has shown."""
        outputs = [potential for potential in self._capture.potentials if potential.is_output]
        step = Step(
            layers=self.layers(),
            sums=self._sums(),
            lam=self.lam if self._is_training else 0.0,
            penalty=add_up_weighted(
                [summand for _, terms in self._passes for term in terms.penalty.values() for summand in term.summands()]
            ),
            entropy_term=add_up([terms.entropy.value() for _, terms in self._passes if terms.entropy is not None]),
            loss=add_up([loss for loss, _ in self._passes]) if self._passes else None,
            not_hidden=tuple(potential.layer for potential in outputs),
            output_sizes=frozenset(potential.units for potential in outputs),
            logit_sizes=frozenset(potential.units for potential in self._capture.potentials if potential.enters_loss),
            samples=self._samples_by_layer(),
            unsampled=tuple(self._unsampled),
            unseen=self._unseen,
        )
        self._release()
        return step

    def _sums(self) -> LayerSums:
        """For each layer the sum of z² over its passes and the number of values."""
        sums: LayerSums = {}
        for tap in self._taps():
            layer = tap.layer
            total, elements = read_on_processor(tap.square_sum), tap.elements
            before = sums.get(layer)
            sums[layer] = (total, elements) if before is None else (before[0] + total, before[1] + elements)
        return sums

    def _samples_by_layer(self) -> dict[str, Tensor]:
        """Values of all passes and parts of each layer."""
        taps = {id(tap) for tap in self._taps()} if self._samples else set()
        found: dict[str, list[Tensor]] = {}
        for tap, values in self._samples:
            if id(tap) in taps:
                found.setdefault(tap.layer, []).append(values)
        return {layer: torch.cat(values) for layer, values in found.items()}

    def _taps(self) -> list[AnyTap]:
        # What is kept was selected; but some potentials turn out to be an output later.
        takes_output = self._settings.selection.output
        return [
            potential.kept
            for potential in self._capture.potentials
            if potential.kept is not None and (takes_output or not potential.is_output)
        ]

    # --- backward passes -------------------------------------------------------------------------------------------

    @property
    def adds_gradients(self) -> bool:
        """Whether the training step has, or may get, a penalty or an entropy term."""
        return self._penalises or self._settings.has_entropy_term

    @property
    def _penalises(self) -> bool:
        return self.lam != 0.0 or self.is_measured

    def measure(
        self,
        loss: Tensor,
        lam: float,
        scale: float,
        parameters: Sequence[Tensor],
        norm: Callable[[Sequence[Tensor | None]], float],
    ) -> tuple[float, float]:
        """The norms of the gradients of the user's loss and of λR, before :meth:`arm` prepares the backward pass.

        Args:
            loss: the tensor whose `backward` is about to be called.
            lam: λ.
            scale: the factor by which the user's loss was multiplied to give it.
            parameters: those that gradients are taken by.
            norm: gives the norm of the gradients by all parameters, None for one that has none.

        Raises:
            RuntimeError: if the backward pass can run only once.
            NotImplementedError: if it was not known when the watch began that gradients are measured.
        """
        if not self._measures:
            raise NotImplementedError(
                "PSPCallback.lam was set to 'auto' while a fit ran, which had not been prepared for it. Set it before"
                " the fit starts."
            )
        if any(takes_saved_tensors(function_of(node)) for node in nodes_below([loss.grad_fn])):
            raise RuntimeError(
                "part of it is a function that `torch.compile` made for one backward pass. Call"
                " `torch.compiler.reset()` before the training."
            )
        with keep_saved_tensors():
            return self._injector.measure(loss, self._taps(), lam, scale, parameters, norm)

    def arm(self, loss: Tensor, scale: LossScale) -> Additions:
        """Prepares a backward pass of the training step.

        Args:
            loss: the tensor whose `backward` is about to be called.
            scale: the factor by which the user's loss was multiplied to give it.
        """
        if self._is_running:  # with manual optimisation
            self._capture.settle([self._capture.edge_of(loss)])
        if self._injector.is_armed:  # the pass before has failed, which its caller has caught
            self._injector.take_sums()
            self._injector.disarm(has_failed=True)
            self._passes.pop()
        terms = self._injector.arm(loss, self._taps(), self.lam, scale)
        self._passes.append((scale.size_without(loss), terms))
        if self._is_running:
            self._bear_witness(has_ended=False)
        with_entropy = () if terms.entropy is None else tuple(terms.entropy.layers)
        is_outside = not (self._is_running or self._module.automatic_optimization)
        return Additions(tuple(terms.penalty), with_entropy, terms.missed, is_outside, self.saw_empty_batch)

    def disarm(self) -> None:
        """Ends a backward pass."""
        self._injector.take_sums()
        self._injector.disarm()

    # --- running steps ---------------------------------------------------------------------------------------------

    def _keep(self, z: Tensor, potential: Potential[AnyTap], in_place: bool) -> AnyTap:
        factor = self._settings.layer_factor(potential.layer)
        is_penalised = self._is_training and self._penalises and factor != 0.0
        is_value = self._capture.reduction is None  # of a compiled function, too
        if is_value and not potential.is_output:
            self._measure.add(potential, z)
        if potential.measured is not None and not is_value:
            if self.takes_samples and self._is_training:
                self._unsampled[potential.layer] = None
            return CompiledTap(potential, potential.measured)
        reduction = self._settings.reduction if is_penalised else None
        tap = Tap(z, potential, in_place, reduction, self._capture.save, self._states(z, potential))
        if self.takes_samples and self._is_training:
            self._samples.append((tap, sample(z)))
        if is_penalised and not self._module.automatic_optimization:
            tap.listen(self._hear_backward)
        return tap

    def _states(self, z: Tensor, potential: Potential[AnyTap]) -> ClassStates | None:
        if self._classes is None or potential.is_output or z.grad_fn is None:
            return None
        entropy = self._settings.entropy
        unit_dim = potential.unit_dim if entropy.unit == "channel" else None
        return ClassStates(z, self._classes, entropy.temperature, unit_dim)

    def _run_training_step(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.lam = self._next_lam()
        self._classes = self._settings.entropy.classes(args[0]) if self._settings.has_entropy_term else None
        try:
            return self._run(step, args, kwargs, is_training=True)
        finally:
            self._classes = None

    def _run_evaluation_step(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        is_left_out = self._trainer.sanity_checking
        return step(*args, **kwargs) if is_left_out else self._run(step, args, kwargs, is_training=False)

    def _run_teardown(self, teardown: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.close()  # where the callback heard of no end
        return teardown(*args, **kwargs)

    def _run(self, step: Callable[..., Any], args: Any, kwargs: Any, is_training: bool) -> Any:
        self._release()
        self._is_training = is_training
        is_run_again = is_training and self._measures
        self._capture.prepare(
            # Compiled code gives potentials themselves where their states are counted.
            None if not is_training and self._measure.is_counting else self._settings.reduction,
            attaches=is_training and self.adds_gradients,
            # A strategy that wraps the module runs a step through the module's own `forward`.
            is_redirected=self._strategy.model is not self._strategy.lightning_module,
            is_run_again=is_run_again,
        )
        try:
            with keep_saved_tensors() if is_run_again else nullcontext(), told_of_graphs(self._capture), self._capture:
                self._is_running = True
                output = step(*args, **kwargs)
                self._settle(output)
                self._check_units()
                if is_training:
                    self._bear_witness()
        except BaseException:
            self._release()
            raise
        finally:
            self._is_running = False
        return output

    def _settle(self, output: Any) -> None:
        if self._passes:  # of manual optimisation
            self._capture.end_losses()
            return
        loss = output.get("loss") if isinstance(output, Mapping) else output
        edge = self._capture.edge_of(loss) if isinstance(loss, Tensor) else (None, 0)
        self._capture.settle(None if edge[0] is None else [edge], may_be_none=not self._is_training)

    def _check_units(self) -> None:
        if self._capture.split_weight is not None:
            if self._is_training and self.adds_gradients:
                refuse_split_units(self._trainer)
            self._measure.give_up("units of a layer are split over processes (tensor parallelism)")

    def _bear_witness(self, *, has_ended: bool = True) -> None:
        layers = len(self._passes), has_ended, frozenset(potential.layer for potential in self._capture.potentials)
        if layers not in self._witnessed and not any(terms.missed for _, terms in self._passes):  # told of already
            self._witnessed.add(layers)
            self._unseen = self._unseen or self._capture.unseen_message(has_ended=has_ended)

    def _check_backward(self, takes_some: bool) -> None:
        if self._injector.is_armed:
            self._injector.start_pass(takes_some)
        elif self._is_training and self.adds_gradients:
            self._on_unseen_backward()

    def _hear_backward(self) -> None:
        """A gradient passes a potential of manual optimisation, to which nothing is added."""
        is_announced = self._injector.is_armed or self._capture.backward_calls.is_differentiating
        if self._is_running and not is_announced:
            self._on_unseen_backward()


class _WatchedStep:
    """A step of a strategy that runs under the watch; a copy of the strategy has its own step again."""

    def __init__(self, run: Callable[..., Any], strategy: Strategy, name: str, leaves: Callable[[], bool]) -> None:
        self.leaves = leaves
        self._run = run
        self._step = getattr(strategy, name)
        self._origin = (strategy, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._step(*args, **kwargs) if self.leaves() else self._run(self._step, *args, **kwargs)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Strategy, str]]:
        return getattr, self._origin
