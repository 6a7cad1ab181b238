"""The Lightning callback that adds the penalty to a training and logs ⟨z²⟩."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_psp.capture.nonlinearities import find_nonlinearities
from lightning_psp.compilation.eager_code import keep_out_of_graphs
from lightning_psp.histograms import write_histograms
from lightning_psp.penalty import Reduction, check_reduction
from lightning_psp.potentials import check_module
from lightning_psp.schedules import Schedule, make_schedule
from lightning_psp.selection import LayerSelection, matches
from lightning_psp.statistics import LayerMeans, mean_over_layers
from lightning_psp.trainer_state import (
    STEP_VALUES,
    first_learning_rate,
    is_logging_step,
    log_step,
    loss_scale,
    means_over_processes,
    splits_layers,
    training_progress,
)
from lightning_psp.watch import Watch


class PSPCallback(Callback):
    r"""Penalises the post-synaptic potentials of a network during training, and logs ⟨z²⟩.

    The optimiser sees the gradient of the user's loss plus :math:`\lambda R`, where R is made from the potentials z,
    the tensors that enter the network's nonlinearities (Tartaglione et al., 2019, Eq. 7; the reductions are those of
    :func:`~lightning_psp.psp_penalty`). In one backward pass R covers the potentials that lie between trained
    parameters and the loss and were not penalised before. The user's loss, as logged and as returned, does not change.

    Logged per step: ``psp/lam``, ``psp/penalty`` (λR), ``psp/z2``. Per epoch: ``psp/z2_train``, ``psp/z2_val``,
    ``psp/z2_test`` (⟨z²⟩, the mean over layers) and, with `log_layers`, ``psp_z2_train/<layer>`` and so on. All can
    be monitored by other callbacks.

    Args:
        lam: strength λ of the penalty, 0 or more; 0 only watches.
        schedule: λ over training: a :class:`~lightning_psp.schedules.Schedule`, or one of ``"constant"``,
            ``"warmup"``, ``"linear"``, ``"cosine"``, ``"learning_rate"``.
        layer_lam: glob pattern on layer names to factor on λ for these layers; factors of several matching patterns
            multiply.
        include: glob patterns on layer names: the layers to penalise and to watch.
        exclude: glob patterns on layer names: the layers to leave alone.
        output: whether the output layer (the logits) is among the layers.
        reduction: ``"mean"``, ``"sum"`` or ``"squared_mean"``.
        activations: further module classes or torch functions whose input is a potential, or their dotted names.
        log_layers: whether ⟨z²⟩ is logged for each layer.
        histograms: whether the distributions of weights and potentials are written to TensorBoard each epoch.

    Raises:
        ValueError: if an argument is outside what is allowed, or (in the first step) if a pattern matches no layer or
            the model has no potentials.
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
        log_layers: bool = True,
        histograms: bool = False,
    ) -> None:
        super().__init__()
        _check_factor("lam", lam)
        find_nonlinearities(activations)
        check_reduction(reduction)
        for argument, value in (("log_layers", log_layers), ("histograms", histograms)):
            if not isinstance(value, bool):
                raise TypeError(f"Expected argument `{argument}` to be a bool but got {value!r}.")
        if layer_lam is not None and not isinstance(layer_lam, Mapping):
            raise TypeError(f"Expected argument `layer_lam` to map glob patterns to factors but got {layer_lam!r}.")
        for pattern, factor in (layer_lam or {}).items():
            _check_factor(f"layer_lam[{pattern!r}]", factor)
        self.lam = float(lam)
        self.schedule = make_schedule(schedule)
        self.layer_lam = dict(layer_lam or {})
        self.selection = LayerSelection(include, exclude, output)
        self.reduction: Reduction = reduction
        self.activations = activations
        self.log_layers = log_layers
        self.histograms = histograms
        self._train_means = LayerMeans()
        self._evaluation_means = LayerMeans()
        self._first_learning_rate: float | None = None
        self._samples: dict[str, Tensor] = {}
        self._said: set[str] = set()
        self._watch: Watch | None = None

    # --- beginning and end -----------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets the training before, of which a checkpoint may have been made up to now."""
        if stage == "fit":
            self._first_learning_rate = None
            self._train_means.reset()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts watching the trainer's steps."""
        if self.reduction == "squared_mean" and trainer.world_size > 1:
            raise NotImplementedError(
                "PSPCallback(reduction='squared_mean') needs the mean of each potential over the whole batch, of which"
                f" each of {trainer.world_size} processes sees a part. Use reduction='mean' or 'sum'."
            )
        if self.lam > 0 and splits_layers(trainer):
            raise NotImplementedError(
                "PSPCallback cannot penalise layers whose units are split over processes (tensor parallelism), for each"
                " process sees a part of a layer. Use"
                f" ModelParallelStrategy(data_parallel_size={trainer.world_size}, tensor_parallel_size=1)."
            )
        self._said = set()
        self._attach(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts a new mean, and watching where the trainer does not fit."""
        self._start_evaluation(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts a new mean, and watching."""
        self._start_evaluation(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves nothing behind."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves nothing behind."""
        self._detach()

    def _attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._detach()
        check_module(pl_module)
        self._watch = Watch(
            trainer,
            pl_module,
            nonlinearities=find_nonlinearities(self.activations),
            selection=self.selection,
            reduction=self.reduction,
            layer_factor=self._layer_factor,
            next_lam=lambda: self._next_lam(trainer),
            on_unseen_backward=lambda: self._say(
                "backward",
                "`training_step` calls `loss.backward()`, which no callback hears of: the penalty on potentials is"
                " missing from this backward pass. Call `self.manual_backward(loss)` instead.",
            ),
        )

    def _detach(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy is not attached to the trainer of the original."""
        return {**self.__dict__, "_watch": None, "_samples": {}}

    # --- training --------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts a new mean with a new epoch, and has the last batch of an epoch sampled for histograms."""
        # Some versions of Lightning announce an epoch once more where they resume it, others not even the next one.
        if batch_idx == 0:
            self._train_means.reset()
        if self._watch is not None:
            self._watch.takes_samples = self.histograms and trainer.is_last_batch

    # A compiled training step with manual optimisation comes by here.
    @keep_out_of_graphs
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Prepares the penalty's gradient."""
        if self._watch is None or self._watch.lam == 0.0:
            return
        # Of several processes, one may have a step without the network.
        is_checked = self._watch.layers or trainer.world_size == 1
        if is_checked and pl_module.automatic_optimization and not self._watch.saw_empty_batch:
            self._check_layers(self._watch)
        self._watch.arm(loss, loss_scale(trainer, pl_module))
        if not self._watch.penalised_layers and not self._watch.saw_empty_batch:
            self._say(
                "nothing",
                "A backward pass reached no potential between trained parameters and its loss: no penalty was added"
                " to it.",
            )

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
        sums = watch.sums()
        # With manual optimisation a step may run a part of the model only.
        if watch.layers and not watch.saw_empty_batch and (pl_module.automatic_optimization or not sums):
            self._check_layers(watch)
        self._train_means.update(sums)
        mean = mean_over_layers(sums) if sums else None
        values = {} if mean is None else dict(zip(STEP_VALUES, (watch.lam, watch.penalty(), mean), strict=True))
        log_step(trainer, pl_module, values)
        if mean is not None:
            # An accelerator is not made to wait in every step.
            is_read = not isinstance(mean, Tensor) or is_logging_step(trainer)
            if is_read and not math.isfinite(mean):
                self._report_broken({layer: float(total) for layer, (total, _) in sums.items()}, "training")
        self._samples.update(watch.samples)
        watch.release()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the means over the epoch."""
        means = self._log_means(trainer, pl_module, self._train_means, "train")
        if self.histograms:
            write_histograms(trainer, pl_module, self._samples)
            self._samples = {}
        watch = self._watch
        if watch is not None and watch.unsampled:
            self._say(
                "samples",
                "PSPCallback(histograms=True) writes no histogram of potentials inside functions made by"
                f" `torch.compile`: {', '.join(watch.unsampled)}. Train without `torch.compile` to see them.",
            )
        if watch is None or not watch.has_trained:  # resumed at the end of an epoch
            return
        if watch.layers or not means:
            self._check_layers(watch)
        if watch.left_out:
            self._say(
                "kinds",
                "Complex, sparse and nested tensors are not penalised. Such tensors enter the nonlinearities of"
                f" {', '.join(watch.left_out)}. Name them in `exclude` to leave them out without this warning.",
            )
        if watch.lam > 0 and not watch.penalised_layers:
            self._say(
                "nothing",
                "No penalty was added in this epoch. With manual optimisation, call `self.manual_backward(loss)`: no"
                " callback hears of `torch.autograd.backward` and `torch.autograd.grad`.",
            )
        elif watch.lam > 0:
            left_out = [
                layer
                for layer in watch.chosen_layers
                if layer not in watch.penalised_layers and self._layer_factor(layer) != 0.0
            ]
            if left_out:
                self._say(
                    "left out",
                    "Layers without a penalty, because they lie on no path from trained parameters to a loss:"
                    f" {', '.join(left_out)}.",
                    is_warning=False,
                )

    def _next_lam(self, trainer: Trainer) -> float:
        if self._first_learning_rate is None:
            self._first_learning_rate = first_learning_rate(trainer)
        return self.lam * self.schedule.factor(training_progress(trainer, self._first_learning_rate))

    def _layer_factor(self, layer: str) -> float:
        if not self.layer_lam:
            return 1.0
        return math.prod(factor for pattern, factor in self.layer_lam.items() if matches(layer, (pattern,)))

    def _check_layers(self, watch: Watch) -> None:
        if "layers" not in self._said:
            self.selection.check({**watch.layers, **watch.fused}, self.layer_lam)
            self._said.add("layers")

    # --- evaluation ------------------------------------------------------------------------------------------------

    def _start_evaluation(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._watch is None:
            self._attach(trainer, pl_module)
        self._evaluation_means.reset()

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
            self._check_layers(self._watch)
        self._evaluation_means.update(self._watch.sums())
        self._watch.release()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the means over the validation data."""
        if trainer.sanity_checking:
            return
        self._log_means(trainer, pl_module, self._evaluation_means, "val")
        trained = {} if self._watch is None else self._watch.layers
        untrained = [layer for layer in self._evaluation_means.compute() if trained and layer not in trained]
        if untrained:
            self._say(
                "validation",
                "Layers seen in validation but in no training step, where nothing is seen under `torch.no_grad()` or"
                f" inside a `torch.autograd.Function`: {', '.join(untrained)}.",
            )

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the means over the test data."""
        self._log_means(trainer, pl_module, self._evaluation_means, "test")

    # --- reporting -------------------------------------------------------------------------------------------------

    def _log_means(
        self, trainer: Trainer, pl_module: LightningModule, means: LayerMeans, stage: str
    ) -> dict[str, float]:
        """Logs them and returns those of all processes."""
        layers = means_over_processes(trainer, means)
        if not layers:
            return layers
        values = {f"psp/z2_{stage}": sum(layers.values()) / len(layers)}
        if self.log_layers:
            values.update({f"psp_z2_{stage}/{layer}": mean for layer, mean in layers.items()})
        if not trainer.barebones:
            # The values of all processes are equal already; Lightning warns of what it does not synchronise itself.
            pl_module.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=trainer.world_size > 1)
        self._report_broken(layers, stage)
        return layers

    def _report_broken(self, layers: Mapping[str, float], stage: str) -> None:
        broken = [layer for layer, value in layers.items() if not math.isfinite(value)]
        if broken:
            # The layers behind the first take it over from it.
            self._say("broken", f"The potentials of layer {broken[0]!r} hold NaN or infinity ({stage}).")

    def _say(self, subject: str, message: str, is_warning: bool = True) -> None:
        """Says something once a fit."""
        if subject not in self._said:
            self._said.add(subject)
            (rank_zero_warn if is_warning else rank_zero_info)(message)

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs: the first learning rate and the sums of an epoch that has begun."""
        sums = {layer: list(entry) for layer, entry in self._train_means.sums().items()}
        return {"first_learning_rate": self._first_learning_rate, "train_sums": sums}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a training where a checkpoint left it."""
        self._first_learning_rate = state_dict["first_learning_rate"]
        self._train_means.load({layer: (total, count) for layer, (total, count) in state_dict["train_sums"].items()})


def _check_factor(argument: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"Expected argument `{argument}` to be a number but got {value!r}.")
    if not 0 <= value < math.inf:
        raise ValueError(f"Expected argument `{argument}` to be a finite number of at least 0 but got {value!r}.")
