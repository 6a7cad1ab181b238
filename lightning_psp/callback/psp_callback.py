"""The Lightning callback that adds the penalty to a training and logs ⟨z²⟩."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lightning_psp.callback.auto_lam import Lam, LamAttribute
from lightning_psp.callback.entropy_measure import EntropyMeasure, Orders
from lightning_psp.callback.epochs import Epochs, Stage
from lightning_psp.callback.histograms import write_histograms
from lightning_psp.callback.layer_metrics import LayerMetrics
from lightning_psp.callback.loss_scales import LossScales
from lightning_psp.callback.reports import Reports
from lightning_psp.callback.settings import EntropySettings, Settings, changed_argument
from lightning_psp.callback.step import Seen
from lightning_psp.callback.step_log import finish_row, is_logging_step, log_step, step_values
from lightning_psp.callback.strength import Strength
from lightning_psp.callback.targets import Target
from lightning_psp.callback.trainer_state import leaving, refuse_second_callback, refuse_training
from lightning_psp.callback.watch import Watch
from lightning_psp.capture.nonlinearities import find_nonlinearities
from lightning_psp.capture.selection import LayerFactors, LayerSelection
from lightning_psp.compilation.eager_code import keep_out_of_graphs
from lightning_psp.functional.arguments import check_bool, check_choice
from lightning_psp.functional.reductions import REDUCTIONS, Reduction
from lightning_psp.functional.validation import Unit
from lightning_psp.lightnings import OnceAFit, OnlyOne, refuse_other_lightning
from lightning_psp.lightnings.lightning_private import accumulates
from lightning_psp.recording.potentials import check_module
from lightning_psp.schedules import Schedule, make_schedule

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class PSPCallback(OnlyOne):
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

    Logged per step: ``psp/lam``, ``psp/penalty`` (λR), ``psp/penalty_share`` (λR over the size of the loss), ``psp/z2``
    and, where there is one, ``psp/entropy_term``. Per epoch: ``psp/z2_train``, ``psp/z2_val``, ``psp/z2_test`` (⟨z²⟩,
    the mean over layers), ``psp/entropy_val`` and ``psp/entropy_test`` (the PSP-entropy of Tartaglione et al., 2020,
    Eq. 3 to 5, the mean over hidden layers), ``psp/entropy2_val`` and so on for further orders. With `log_layers` each
    layer's: ``psp_z2_train/<layer>``, ``psp_entropy_val/<layer>`` and so on. Several dataloaders count as one data set.
    All can be monitored by other callbacks.

    Args:
        lam: strength λ of the penalty, 0 or more; 0 only watches. ``"auto"`` finds it in training: the gradient of λR
            by all trained parameters has 0.3 of the norm of the loss's, by running means of both norms that are
            measured in the first optimiser step and in every tenth, at the cost of two more backward passes. Factors
            multiply it as they do a number. It needs automatic optimisation and parameters that are not sharded.
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
        histograms: whether distributions are written to TensorBoard each epoch: of parameters of two or more dimensions
            and of potentials in the epoch's last batch, at most 50,000 values of each pass and part.

    Raises:
        ValueError: if an argument is outside what is allowed; if a pattern matches no layer or the model has no
            potentials (in the first step; with manual optimisation, where a step may run a part of the model, at the
            end of the first epoch at the latest).
        TypeError: if an argument is of the wrong type.
        NotImplementedError: if λ is to be found in a training where it cannot be (when it starts).

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[PSPCallback(lam=1e-3)], logger=False, accelerator="cpu")

    A Trainer takes one such callback; `layer_lam` gives layers different strengths. `lam`, `schedule` and `histograms`
    may be changed at any time, the other arguments not.
    """

    lam = LamAttribute()

    def __init__(
        self,
        lam: Lam = 1e-3,
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
        self._arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        find_nonlinearities(activations)
        check_choice("reduction", reduction, REDUCTIONS)
        check_bool("log_layers", log_layers)
        check_bool("histograms", histograms)
        self.lam = lam
        self.schedule = make_schedule(schedule)
        self.layer_lam = LayerFactors({} if layer_lam is None else layer_lam).by_pattern
        self.selection = LayerSelection(include, exclude, output)
        self.reduction: Reduction = reduction
        self.activations = activations
        self.entropy_term = EntropySettings(entropy_weight, entropy_temperature, target, num_classes, entropy_unit)
        self.histograms = histograms
        self._settings = Settings(self.selection, reduction, LayerFactors(self.layer_lam), self.entropy_term)
        self._say = OnceAFit()
        self._reports = Reports(self._say, self._settings)
        self._entropy = EntropyMeasure(entropy, entropy_unit, num_classes, target, self._say)
        self._epochs = Epochs(self._entropy, log_layers)
        self._strength, self._loss_scales = Strength(), LossScales()
        self._samples: dict[str, Tensor] = {}
        self._watch: Watch | None = None
        self._seen = Seen()

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses to change an argument that is read only once."""
        if "_seen" in vars(self) and name in self._arguments:  # the last attribute that is made
            value = changed_argument(name, value)
            self._arguments = self._arguments | {name: value}
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        arguments = {**self._arguments, "lam": self.lam}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"

    @property
    def metrics(self) -> dict[str, dict[str, LayerMetrics]]:
        """What is logged, as metrics: by stage (``"train"``, ``"val"``, ``"test"``) and layer.

        They hold what the last epoch of that stage has measured, of all processes, until the next one starts; while one
        runs, what this process has measured so far. ``callback.metrics["val"]["conv1"]`` has the attributes
        ``mean_square``, a :class:`~lightning_psp.metrics.MeanSquarePotential`, and, of a hidden layer whose PSP-entropy
        is measured, ``entropy``, ``entropy2`` and so on for further orders, each a
        :class:`~lightning_psp.metrics.PSPEntropy`. Their tensors lie in the processor's memory when an epoch has ended.
        A checkpoint that ``trainer.test(ckpt_path=…)`` or ``validate`` loads brings its own ``"train"``.
        """
        return self._epochs.metrics()

    # --- beginning and end -----------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets the training before, of which a checkpoint may have been made up to now."""
        refuse_other_lightning(trainer, pl_module)
        refuse_second_callback(trainer, self, PSPCallback)
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._strength, self._loss_scales = Strength(), LossScales()
            self._epochs.start_training()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts watching the trainer's steps."""
        refuse_training(trainer, pl_module, self.lam, self.entropy_term.weight)
        self._reports.start()
        self._attach(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts a new epoch of metrics, and watching where the trainer does not fit."""
        self._start_evaluation(trainer, pl_module, "val")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts a new epoch of metrics, and watching."""
        self._start_evaluation(trainer, pl_module, "test")

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
        is_gone = leaving(trainer, self)

        def leaves() -> bool:
            if is_gone():
                self._detach()
            return self._watch is not watch

        self._seen = Seen()
        self._watch = watch = Watch(
            trainer,
            pl_module,
            find_nonlinearities(self.activations),
            self._settings,
            next_lam=lambda: self._strength.next(self.lam, self.schedule, trainer),
            measure=self._entropy,
            on_unseen_backward=lambda: None if is_gone() else self._reports.tell_of_unseen_backward(pl_module),
            leaves=leaves,
            measures=self.lam == "auto",
        )

    def _attach_late(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Does what was missed by a callback that came, or came back, to a trainer that fits already."""
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
        """Starts an epoch of metrics with each epoch, and has the last batch of an epoch sampled for histograms."""
        self._epochs.start_step(trainer)
        if self._watch is None:
            self._attach_late(trainer, pl_module)
        if self._watch is not None:
            self._watch.takes_samples = self.histograms and trainer.is_last_batch
            self._watch.is_measured = self._strength.is_due(self.lam, trainer)

    # A compiled training step with manual optimisation comes by here.
    @keep_out_of_graphs
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Prepares the penalty's gradient."""
        watch = self._watch
        if watch is None or not watch.adds_gradients:
            return
        if pl_module.automatic_optimization and not self._reports.has_checked_layers:
            layers = watch.layers()
            self._seen.add_layers(layers)
            # Of several processes, one may have a step without the network.
            if (self._seen.layers or trainer.world_size == 1) and not layers.is_empty:
                self._reports.check_layers(self._seen)
        scale = self._loss_scales.of_pass(trainer, pl_module, loss, reads=watch.is_measured)
        if watch.is_measured:
            self._strength.measure(watch, loss, scale.number, trainer, pl_module)
        additions = watch.arm(loss, scale)
        self._seen.add_additions(additions)
        self._reports.tell_of_backward(additions, self._seen, watch.lam)

    @keep_out_of_graphs
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends a backward pass."""
        if self._watch is not None:
            self._watch.disarm()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the step and lets go of its potentials."""
        if self._watch is None:
            return
        step = self._watch.finish()
        self._seen.add_training(step)
        self._reports.tell_of_unseen(step)
        # With manual optimisation a step may run a part of the model only.
        has_seen_all = pl_module.automatic_optimization
        if self._seen.layers and not step.layers.is_empty and (has_seen_all or not step.sums):
            self._reports.check_layers(self._seen, has_seen_all)
        self._epochs.add("train", step)
        values = step_values(step, self._settings.has_entropy_term)
        log_step(trainer, pl_module, values)
        # An accelerator is not made to wait in every step.
        if values and (not isinstance(values["psp/z2"], Tensor) or is_logging_step(trainer)):
            self._reports.tell_of_step(step, values["psp/z2"])
        if not self._reports.has_told_of_first_step and not (has_seen_all and accumulates(trainer)):
            lam = self._strength.at_full(self.lam)
            self._reports.tell_of_first_step(step, self._seen, lam, pl_module, is_auto=self.lam == "auto")
        self._samples.update(step.samples)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the means over the epoch."""
        if self._watch is None:  # it came after the last step
            return
        finish_row(trainer)
        means = self._finish_epoch(trainer, pl_module, "train")
        if self.histograms:
            write_histograms(trainer, pl_module, self._samples)
        self._samples = {}
        if not self._seen.has_trained:  # resumed at the end of an epoch
            return
        if self._seen.layers or not means:
            self._reports.check_layers(self._seen)
        self._reports.tell_of_epoch(self._seen, lacks_lam=self.lam == "auto" and not self._strength.has_measured)

    def _finish_epoch(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> dict[str, float]:
        means = self._epochs.finish(trainer, pl_module, stage)
        self._reports.tell_of_broken(means, stage)
        return means

    # --- evaluation ------------------------------------------------------------------------------------------------

    def _start_evaluation(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        if self._watch is None:
            (self._attach_late if trainer.state.fn == "fit" else self._attach)(trainer, pl_module)
        self._epochs.start_evaluation(trainer, stage)

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
        if self._watch is not None:
            self._entropy.start_batch(batch)
            if trainer.sanity_checking:  # no potentials come, but wrong arguments show
                self._entropy.release()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Adds the batch to the metrics."""
        self._end_evaluation_batch(trainer, "val")

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Adds the batch to the metrics."""
        self._end_evaluation_batch(trainer, "test")

    def _end_evaluation_batch(self, trainer: Trainer, stage: Stage) -> None:
        if self._watch is None or trainer.sanity_checking:
            return
        step, is_alone = self._watch.finish(), trainer.state.fn != "fit"
        if is_alone:  # a network may have other layers in training than in the validation between its epochs
            self._seen.add_layers(step.layers)
        if self._seen.layers:
            self._reports.check_layers(self._seen, has_seen_all=is_alone)
        self._epochs.add(stage, step)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the means over the validation data."""
        if trainer.sanity_checking or self._watch is None:  # it came in the middle of a validation
            return
        evaluated = self._epochs.layers("val")
        self._finish_epoch(trainer, pl_module, "val")
        self._reports.tell_of_untrained(evaluated, self._seen.layers)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the means over the test data."""
        self._finish_epoch(trainer, pl_module, "test")

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs: what λ depends on, and the sums of an epoch that has begun."""
        return {**self._strength.state(), **self._epochs.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a training where a checkpoint left it."""
        self._strength.load(state_dict)
        self._epochs.load(state_dict)
