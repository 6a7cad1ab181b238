"""The Lightning callback that adds the penalty to a training and logs ⟨z²⟩."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lightning_psp.callback.entropy_measure import EntropyMeasure, Orders
from lightning_psp.callback.entropy_settings import EntropySettings
from lightning_psp.callback.histograms import write_histograms
from lightning_psp.callback.layer_means import LayerMeans, mean_over_layers
from lightning_psp.callback.step_log import STEP_VALUES, finish_row, is_logging_step, log_step
from lightning_psp.callback.step_report import (
    report_backward,
    report_broken,
    report_unseen,
    report_unseen_backward,
    report_untrained,
)
from lightning_psp.callback.targets import Target
from lightning_psp.callback.trainer_state import (
    first_learning_rate,
    has_callback,
    loss_scale,
    means_over_processes,
    refuse_second_callback,
    refuse_what_needs_one_process,
    training_progress,
)
from lightning_psp.callback.training_report import report_epoch
from lightning_psp.callback.watch import Watch
from lightning_psp.capture.nonlinearities import find_nonlinearities
from lightning_psp.capture.selection import LayerFactors, LayerSelection
from lightning_psp.compilation.eager_code import keep_out_of_graphs
from lightning_psp.functional.arguments import check_bool, check_choice, check_number
from lightning_psp.functional.penalty import REDUCTIONS, Reduction
from lightning_psp.functional.validation import Unit
from lightning_psp.lightnings import AnyCallback, OnceAFit, refuse_other_lightning
from lightning_psp.recording.potentials import check_module
from lightning_psp.schedules import Schedule, make_schedule

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class PSPCallback(AnyCallback):
    r"""Penalises the post-synaptic potentials of a network during training, and logs ⟨z²⟩ and PSP-entropy.

    The optimiser sees the gradient of the user's loss plus :math:`\lambda R`, where R is made from the potentials z,
    the tensors that enter the network's nonlinearities (Tartaglione et al., 2019: the default ``"mean"`` is the
    authors' code for LeNet-5, Eq. 7 is ``"sum"``; see :func:`~lightning_psp.psp_penalty`). In one backward pass R
    covers the potentials that lie between trained parameters and the loss and were not penalised before. The user's
    loss, as logged and as returned, does not change.

    A layer is a set of neurons, told apart by the weights that make their potentials: evaluated several times in a step
    they are one layer, whose passes count as one batch. It is named after the module with weights whose output z is
    (``model.conv1``), after the parameter, or after the place in the code (``model.block.relu``), relative to the
    LightningModule. The output layer is what enters the loss's own softmax or sigmoid, and what the network returned
    and the loss reaches. Warnings name, once, what could not be seen: functions and custom autograd functions that may
    be nonlinearities, and a network of several layers of which only the output was found.

    Logged per step: ``psp/lam``, ``psp/penalty`` (λR), ``psp/z2`` and, where there is one, ``psp/entropy_term``. Per
    epoch: ``psp/z2_train``, ``psp/z2_val``, ``psp/z2_test`` (⟨z²⟩, the mean over layers), ``psp/entropy_val`` and
    ``psp/entropy_test`` (the PSP-entropy of Tartaglione et al., 2020, Eq. 3 to 5, the mean over hidden layers),
    ``psp/entropy2_val`` and so on for further orders. With `log_layers` each layer's: ``psp_z2_train/<layer>``,
    ``psp_entropy_val/<layer>`` and so on. Several dataloaders count as one data set. All can be monitored by other
    callbacks.

    Args:
        lam: strength λ of the penalty, 0 or more; 0 only watches.
        schedule: λ over training: a :class:`~lightning_psp.schedules.Schedule`, or one of ``"constant"``,
            ``"warmup"``, ``"linear"``, ``"cosine"``, ``"learning_rate"``.
        layer_lam: glob pattern on layer names to factor on λ for these layers; factors of several matching patterns
            multiply.
        include: glob patterns on layer names: the layers to penalise and to watch, with all their passes and parts.
        exclude: glob patterns on layer names: the layers to leave alone.
        output: whether the output layers (the logits, or what the network returned for another loss) are among the
            layers.
        reduction: ``"mean"``, ``"sum"`` or ``"squared_mean"``.
        activations: further module classes or torch functions whose input is a potential, or their dotted names.
            Torch's own nonlinearities, and activations that modules and functions write out, are found without.
        entropy: orders of PSP-entropy to measure over validation and test runs, such as ``(1, 2)``; ``()`` for none.
            ``"auto"`` measures order 1 where class labels are found and the counts take no more than 512 MiB, and says
            once why not where it does not.
        entropy_unit: what one neuron is for PSP-entropy: ``"element"`` of the potentials, or ``"channel"``, whose
            positions are further observations of it.
        entropy_weight: factor on the mean over hidden layers of their soft entropy
            (:func:`~lightning_psp.functional.soft_psp_entropy`), which is added to the loss: a positive weight lowers
            the entropy, a negative one raises it, 0 leaves it out. Potentials need the samples of the batch in
            dimension 0; of several passes, each has the labels of the whole batch. Several processes and compiled
            layers are an error.
        entropy_temperature: temperature T of the graded states σ(z / T) that make the soft entropy.
        num_classes: number of classes, which the labels have to stay below. By default the number of logits (2 for a
            single one); in training no bound.
        target: an index or a key of a batch, or a callable that is given the batch: where its class labels ``[batch]``
            are. By default the second item of a pair, or ``"label"``, ``"labels"``, ``"target"``, ``"y"`` of a mapping.
        log_layers: whether ⟨z²⟩ and PSP-entropy are logged for each layer.
        histograms: whether the distributions of weights and potentials are written to TensorBoard each epoch.

    Raises:
        ValueError: if an argument is outside what is allowed; if a pattern matches no layer or the model has no
            potentials (in the first step; with manual optimisation, where a step may run a part of the model, at the
            end of the first epoch at the latest).
        TypeError: if an argument is of the wrong type.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[PSPCallback(lam=1e-3)], logger=False, accelerator="cpu")

    A Trainer takes one such callback; `layer_lam` gives layers different strengths.
    """

    def __init__(
        self,
        lam: float = 1e-3,
        *,
        schedule: Schedule | str | None = None,
        layer_lam: Mapping[str, float] | None = None,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        output: bool = True,
        reduction: Reduction = "mean",
        activations: Sequence[str | type[nn.Module] | Callable[..., Any]] = (),
        entropy: Orders = "auto",
        entropy_unit: Unit = "element",
        entropy_weight: float = 0.0,
        entropy_temperature: float = 1.0,
        num_classes: int | None = None,
        target: Target = None,
        log_layers: bool = True,
        histograms: bool = False,
    ) -> None:
        super().__init__()
        check_number("lam", lam, at_least=0)
        find_nonlinearities(activations)
        check_choice("reduction", reduction, REDUCTIONS)
        check_bool("log_layers", log_layers)
        check_bool("histograms", histograms)
        self.lam = float(lam)
        self.schedule = make_schedule(schedule)
        self._layer_factor = LayerFactors({} if layer_lam is None else layer_lam)
        self.layer_lam = self._layer_factor.by_pattern
        self.selection = LayerSelection(include, exclude, output)
        self.reduction: Reduction = reduction
        self.activations = activations
        self.num_classes = num_classes
        self.target = target
        self.entropy_term = EntropySettings(entropy_weight, entropy_temperature, target, num_classes, entropy_unit)
        self.log_layers = log_layers
        self.histograms = histograms
        self._train_means = LayerMeans()
        self._evaluation_means = LayerMeans()
        self._say = OnceAFit()
        self._entropy = EntropyMeasure(entropy, entropy_unit, num_classes, target, self._say)
        self._first_learning_rate: float | None = None
        self._samples: dict[str, Tensor] = {}
        self._watch: Watch | None = None

    # --- beginning and end -----------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets the training before, of which a checkpoint may have been made up to now."""
        refuse_other_lightning(trainer, pl_module)
        if stage == "fit":
            self._first_learning_rate = None
            self._train_means.reset()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts watching the trainer's steps."""
        refuse_what_needs_one_process(trainer, self.lam, self.reduction, self.entropy_term.weight)
        self._say.forget()
        self._attach(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts a new mean, and watching where the trainer does not fit."""
        self._start_evaluation(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts a new mean, and watching."""
        self._start_evaluation(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves nothing behind."""
        finish_row(trainer)
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves nothing behind."""
        finish_row(trainer)
        self._detach()

    def _attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._detach()
        check_module(pl_module)
        was_there = has_callback(trainer, self)  # or another callback hands the trainer's hooks on to this one

        def is_gone() -> bool:
            return was_there and not has_callback(trainer, self)

        def leaves() -> bool:
            if is_gone():
                self._detach()
            return self._watch is not watch

        self._watch = watch = Watch(
            trainer,
            pl_module,
            nonlinearities=find_nonlinearities(self.activations),
            selection=self.selection,
            reduction=self.reduction,
            layer_factor=self._layer_factor,
            next_lam=lambda: self._next_lam(trainer),
            entropy=self.entropy_term,
            measure=self._entropy,
            on_unseen_backward=lambda: None if is_gone() else report_unseen_backward(self._say),
            leaves=leaves,
        )

    def _attach_late(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Does what was missed by a callback that came, or came back, to a trainer that fits already."""
        refuse_second_callback(trainer, self)
        self.setup(trainer, pl_module, "fit")
        self.on_fit_start(trainer, pl_module)

    def _detach(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self._entropy.release()

    def __getstate__(self) -> dict[str, Any]:
        """A copy is not attached to the trainer of the original."""
        return {**self.__dict__, "_watch": None, "_samples": {}}

    # --- training --------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts a new mean with a new epoch, and has the last batch of an epoch sampled for histograms."""
        # Some versions of Lightning announce an epoch once more where they resume it, others not even the next one.
        if batch_idx == 0:
            self._train_means.reset()
        if self._watch is None:
            self._attach_late(trainer, pl_module)
        if self._watch is not None:
            self._watch.takes_samples = self.histograms and trainer.is_last_batch

    # A compiled training step with manual optimisation comes by here.
    @keep_out_of_graphs
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Prepares the penalty's gradient."""
        watch = self._watch
        if watch is None or not watch.adds_gradients:
            return
        # Of several processes, one may have a step without the network.
        is_checked = watch.layers or trainer.world_size == 1
        if is_checked and pl_module.automatic_optimization and not watch.saw_empty_batch:
            self._check_layers(watch)
        watch.arm(loss, loss_scale(trainer, pl_module))
        if not watch.saw_empty_batch:
            report_backward(self._say, watch, self.entropy_term.weight != 0.0)

    @keep_out_of_graphs
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends a backward pass."""
        if self._watch is not None:
            self._watch.disarm()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the step and lets go of its potentials."""
        watch = self._watch
        if watch is None:
            return
        report_unseen(self._say, watch)
        sums = watch.sums()
        # With manual optimisation a step may run a part of the model only.
        has_seen_all = pl_module.automatic_optimization
        if watch.layers and not watch.saw_empty_batch and (has_seen_all or not sums):
            self._check_layers(watch, has_seen_all)
        self._train_means.update(sums)
        mean = mean_over_layers(sums) if sums else None
        values = {} if mean is None else dict(zip(STEP_VALUES, (watch.lam, watch.penalty(), mean), strict=True))
        if values and self.entropy_term.weight != 0.0:
            values["psp/entropy_term"] = watch.entropy_term()
        log_step(trainer, pl_module, values)
        # An accelerator is not made to wait in every step.
        is_read = not isinstance(mean, Tensor) or is_logging_step(trainer)
        if mean is not None and is_read and not math.isfinite(mean):
            report_broken(self._say, {layer: total for layer, (total, _) in sums.items()}, "training")
        self._samples.update(watch.samples)
        watch.release()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the means over the epoch."""
        watch = self._watch
        if watch is None:  # it came after the last step
            return
        finish_row(trainer)
        means = self._log_means(trainer, pl_module, self._train_means, "train")
        if self.histograms:
            write_histograms(trainer, pl_module, self._samples)
            self._samples = {}
        if not watch.has_trained:  # resumed at the end of an epoch
            return
        if watch.layers or not means:
            self._check_layers(watch)
        report_epoch(self._say, watch, self._layer_factor)

    def _next_lam(self, trainer: Trainer) -> float:
        if self._first_learning_rate is None:
            self._first_learning_rate = first_learning_rate(trainer)
        return self.lam * self.schedule.factor(training_progress(trainer, self._first_learning_rate))

    def _check_layers(self, watch: Watch, has_seen_all: bool = True) -> None:
        layers = {**watch.layers, **watch.fused}
        if not self._say.was_told("layers"):
            self.selection.check(layers, self.layer_lam)
            self._say.note("layers")
        if has_seen_all and not self._say.was_told("chosen"):
            self.selection.check_chosen(layers, {**watch.chosen_layers, **watch.left_out, **watch.fused})
            self._say.note("chosen")

    # --- evaluation ------------------------------------------------------------------------------------------------

    def _start_evaluation(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._watch is None and trainer.state.fn == "fit":
            self._attach_late(trainer, pl_module)
        elif self._watch is None:
            self._attach(trainer, pl_module)
        self._evaluation_means.reset()
        self._entropy.start(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Finds the class labels of the batch."""
        self._start_evaluation_batch(trainer, batch)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Finds the class labels of the batch."""
        self._start_evaluation_batch(trainer, batch)

    def _start_evaluation_batch(self, trainer: Trainer, batch: Any) -> None:
        if self._watch is not None and not trainer.sanity_checking:
            self._entropy.start_batch(batch)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Adds the batch to the mean."""
        self._end_evaluation_batch(trainer)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Adds the batch to the mean."""
        self._end_evaluation_batch(trainer)

    def _end_evaluation_batch(self, trainer: Trainer) -> None:
        if self._watch is None or trainer.sanity_checking:
            return
        if self._watch.layers:
            self._check_layers(self._watch, has_seen_all=trainer.state.fn != "fit")
        self._evaluation_means.update(self._watch.sums())
        self._entropy.end_batch(self._watch.layers_not_hidden(), self._watch.output_sizes(), self._watch.logit_sizes())
        self._watch.release()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the means over the validation data."""
        if trainer.sanity_checking or self._watch is None:  # it came in the middle of a validation
            return
        self._log_means(trainer, pl_module, self._evaluation_means, "val")
        report_untrained(self._say, self._evaluation_means.compute(), self._watch.layers)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the means over the test data."""
        self._log_means(trainer, pl_module, self._evaluation_means, "test")

    # --- reporting -------------------------------------------------------------------------------------------------

    def _log_means(
        self, trainer: Trainer, pl_module: LightningModule, means: LayerMeans, stage: str
    ) -> dict[str, float]:
        """Logs them, with the entropies of an evaluation, and returns those of all processes."""
        layers = means_over_processes(trainer, means)
        entropies = {}
        if stage != "train":
            entropies = self._entropy.values(trainer, stage, layers, self.log_layers)
            self._entropy.release()
        if not layers:
            return layers
        values = {f"psp/z2_{stage}": sum(layers.values()) / len(layers)}
        if self.log_layers:
            values.update({f"psp_z2_{stage}/{layer}": mean for layer, mean in layers.items()})
        values.update(entropies)
        if not trainer.barebones:
            # The values of all processes are equal already; Lightning warns of what it does not synchronise itself.
            pl_module.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=trainer.world_size > 1)
        report_broken(self._say, layers, stage)
        return layers

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs: the first learning rate and the sums of an epoch that has begun."""
        sums = {layer: list(entry) for layer, entry in self._train_means.sums().items()}
        return {"first_learning_rate": self._first_learning_rate, "train_sums": sums}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a training where a checkpoint left it."""
        self._first_learning_rate = state_dict["first_learning_rate"]
        self._train_means.load({layer: (total, count) for layer, (total, count) in state_dict["train_sums"].items()})
