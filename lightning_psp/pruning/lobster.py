"""The callback that prunes a network while it trains."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_psp.capture.selection import LayerSelection
from lightning_psp.functional.arguments import check_integer, check_number
from lightning_psp.functional.progress import progress_bar
from lightning_psp.pruning.best_weights import copied, put_back
from lightning_psp.pruning.bound_masks import bind_masks
from lightning_psp.pruning.decay import check_precision, sensitivity_decay
from lightning_psp.pruning.gradients import UnclippedGradients
from lightning_psp.pruning.holding import HoldsMasks
from lightning_psp.pruning.logged_names import LoggedNames
from lightning_psp.pruning.masks import magnitude_masks
from lightning_psp.pruning.module_attributes import ModuleAttributes
from lightning_psp.pruning.monitored import check_still_pruned, monitored, refuse_constant, warn_of_chance, warn_of_fall
from lightning_psp.pruning.plateau import Plateau, warn_of_no_plateau
from lightning_psp.pruning.prunable import prunable_weights
from lightning_psp.pruning.pruning_step import PruningStep
from lightning_psp.pruning.shares import most_prunable
from lightning_psp.pruning.threshold import FoundThreshold, find_threshold
from lightning_psp.pruning.validation_run import check_lightning, validations_without_trace

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

EVALUATIONS = 15  # of the validation data at a plateau, that of the network before pruning included


class LobsterPruning(HoldsMasks):
    r"""Prunes a network while it trains, by LOBSTER: weights that the loss does not depend on shrink, small ones go.

    Two things alternate (Tartaglione et al., 2022, arXiv:2011.09905; the gradual pruning of Tartaglione et al., 2020):

    - After each optimiser step every prunable weight shrinks, the less the more the loss depends on it, with the
      gradient of the loss that the optimiser used, unscaled and before clipping:

      .. math:: w \leftarrow w - \lambda\, w \max\left(0, 1 - \left|\frac{\partial L}{\partial w}\right|\right)

      Parameters without a gradient (frozen ones, parts that a step does not use) do not shrink, nor does anything in a
      step that loss scaling skips.
    - When `monitor` has not improved by more than `min_improvement` for `patience` validations, a plateau, the best
      weights are restored, and the largest threshold T is sought by bisection such that without all :math:`|w| < T` the
      `monitor` of the validation data grows by at most the factor ``1 + tolerance``. Those weights are set to 0 and
      stay 0. Each threshold that is applied was evaluated and keeps the bound; a search takes at most 15 evaluations.

    Training stops when a plateau finds nothing more to prune, or at `max_sparsity`. The module then has the best pruned
    weights: those of the last plateau, restored. Where the trainer stops earlier (`max_epochs`, another callback), it
    has those of the last step, and pruned weights are 0 in them, too. A training that had stopped stops at once when it
    is resumed.

    A validation without an optimiser step since the last one does not count, nor does the sanity check. A search runs
    the trainer's own validation loop within ``on_validation_end``, with the LightningModule's hooks, and without
    callbacks and loggers; metrics, random states and attributes of the module are as before. Checkpoints that are
    written at the end of this validation hold the pruned weights, with the `monitor` of before in their name.

    Logged per epoch: ``pruning/sparsity``, the share of the prunable weights that are 0,
    ``pruning_sparsity/<parameter>``, the share of each, and ``pruning/threshold``, the last T.

    Args:
        lam: the share λ that weights shrink by, from 0 to 1; it is not multiplied by the learning rate.
        tolerance: how much `monitor` may grow when weights are set to 0, relative to its value before.
        patience: validations without improvement that make a plateau.
        monitor: what the LightningModule logs in its validation and is to stay small, a loss. The mean over processes.
        min_improvement: the relative improvement that is one.
        include: glob patterns on names of parameters. Prunable are the weights of linear and (transposed) convolution
            layers.
        exclude: glob patterns on names of parameters.
        max_sparsity: share of the prunable weights that may be 0, from 0 to 1. By default the largest weight is the
            last to stay.

    Attributes:
        masks: name of each parameter to a bool tensor of its shape, True where the weight stays.
        history: a :class:`PruningStep` for each plateau.

    ``trainer.validate(ckpt_path=…)`` and ``test`` load both with the weights: they are then those of the checkpoint.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if an argument is outside what is allowed. When a fit starts: if a pattern matches no parameter,
            λ is too small for the precision of a parameter, the trainer validates nothing, or has another callback
            that holds masks. After a validation: if the LightningModule did not log `monitor`, or it was never finite.
        RuntimeError: if the module has got another parameter since its weights were the best.
        NotImplementedError: if weights are sharded over processes.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[LobsterPruning(lam=1e-4)], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        lam: float = 1e-4,
        tolerance: float = 0.05,
        patience: int = 20,
        *,
        monitor: str = "val_loss",
        min_improvement: float = 0.01,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        max_sparsity: float | None = None,
    ) -> None:
        super().__init__()
        check_number("lam", lam, at_least=0, at_most=1)
        check_number("tolerance", tolerance, at_least=0)
        check_integer("patience", patience, at_least=1)
        check_number("min_improvement", min_improvement, at_least=0)
        if max_sparsity is not None:
            check_number("max_sparsity", max_sparsity, at_least=0, at_most=1)
        if not isinstance(monitor, str):
            raise TypeError(f"Expected argument `monitor` to be the name of a logged value but got {monitor!r}.")
        selection = LayerSelection(include, exclude)
        self.lam = float(lam)
        self.tolerance = float(tolerance)
        self.patience = patience
        self.monitor = monitor
        self.min_improvement = float(min_improvement)
        self.include = tuple(selection.include)
        self.exclude = tuple(selection.exclude)
        self.max_sparsity = max_sparsity
        self._forget()

    def _forget(self) -> None:
        self.masks = {}
        self.history: list[PruningStep] = []
        self._plateau = Plateau(self.patience, self.min_improvement)
        self._best: dict[str, Tensor] = {}
        self._last_step, self._first_step = -1, 0
        self._has_stepped = self._has_shrunk = False
        self._is_finished = False
        self._module: weakref.ref[LightningModule] | None = None
        self._before: ModuleAttributes | None = None
        self._gradients = UnclippedGradients()
        self._logged = LoggedNames()

    # --- beginning and end -----------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begins anew with another module; goes on where the same is trained further."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        check_lightning(trainer)
        if self._module is None or self._module() is not pl_module:
            self._forget()
            self._module = weakref.ref(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts to shrink weights, and to hold the masks of before or such that let all weights stay."""
        if not trainer.enable_validation:
            raise ValueError(
                "LobsterPruning prunes by what is validated, but the trainer validates nothing. Give `fit` validation"
                " data, the LightningModule a `validation_step`, and the Trainer `limit_val_batches` above 0."
            )
        if trainer.barebones:
            raise ValueError("LobsterPruning prunes by what is logged, and Trainer(barebones=True) logs nothing.")
        weights = prunable_weights(pl_module, self.include, self.exclude)
        for name, weight in weights.items():
            check_precision(name, weight.parameter.dtype, self.lam)
        if not self.masks:
            self.masks = {
                name: torch.ones_like(weight.parameter, dtype=torch.bool, device="cpu")
                for name, weight in weights.items()
            }
        elif self.masks.keys() != weights.keys():
            raise ValueError(
                f"LobsterPruning goes on with masks for {', '.join(self.masks)}, but `include` and `exclude` choose"
                f" {', '.join(weights)}. Use the patterns of before."
            )
        super().on_fit_start(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves nothing behind."""
        super().teardown(trainer, pl_module, stage)
        self._gradients.forget()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves nothing behind."""
        super().on_exception(trainer, pl_module, exception)
        self._gradients.forget()
        self._before = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy is not attached to the trainer and module of the original."""
        own = {"_module": None, "_before": None, "_gradients": UnclippedGradients(), "_logged": LoggedNames()}
        return {**super().__getstate__(), **own}

    # --- training --------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops a training that had stopped already when it was saved."""
        self._first_step = trainer.global_step
        trainer.should_stop = trainer.should_stop or self._is_finished
        warn_of_no_plateau(self._plateau, trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Keeps the gradients where they are going to be clipped."""
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if self.lam > 0:
            self._gradients.keep(trainer, pl_module, optimizer, self._parameters(optimizer))

    def before_step(self, optimizer: Optimizer) -> None:
        """Keeps the gradients of a step that the trainer does not take, where the optimiser works in them."""
        if self.lam > 0:
            self._gradients.keep_unseen(optimizer, self._parameters(optimizer))

    def after_step(self, optimizer: Optimizer) -> None:
        """Shrinks the weights that an optimiser has moved."""
        self._has_stepped = True
        if self.lam == 0:
            return
        gradients = self._gradients.take(self._parameters(optimizer))
        self._has_shrunk = self._has_shrunk or bool(gradients)
        sensitivity_decay([*gradients], [*gradients.values()], self.lam)

    def _parameters(self, optimizer: Optimizer) -> list[nn.Parameter]:
        """The prunable parameters that an optimiser moves."""
        prunable = {id(each.weight.parameter) for each in self._bound}
        moved = (parameter for group in optimizer.param_groups for parameter in group["params"])
        return [parameter for parameter in moved if id(parameter) in prunable]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the shares of weights that are 0, and the last threshold."""
        super().on_train_epoch_end(trainer, pl_module)
        if self.lam > 0 and trainer.global_step > self._first_step and not self._has_shrunk:
            self._has_shrunk = True  # said once
            rank_zero_warn(
                "LobsterPruning has shrunk no weight in the first epoch: it was told of no step of an optimiser that"
                " holds a prunable parameter with a gradient."
            )
        if not trainer.barebones:
            threshold = next((step.threshold for step in reversed(self.history) if step.threshold > 0), 0.0)
            pl_module.log("pruning/threshold", threshold, on_epoch=True, batch_size=1, sync_dist=trainer.world_size > 1)

    # --- plateaus --------------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the state of the module that the validations of a search are to begin with."""
        super().on_validation_start(trainer, pl_module)
        self._logged.start(trainer)
        may_search = self._steps is not None and self._plateau.waited + 1 >= self.patience
        self._before = ModuleAttributes(pl_module) if may_search else None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes what callbacks have logged."""
        self._logged.note(trainer, "on_validation_epoch_start")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Applies the masks as the class above, and notes what callbacks have logged."""
        super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        self._logged.note_batch(trainer, "on_validation_batch_start", batch_idx, dataloader_idx)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Notes what callbacks have logged."""
        self._logged.note_batch(trainer, "on_validation_batch_end", batch_idx, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes what callbacks have logged."""
        self._logged.note(trainer, "on_validation_epoch_end")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts the validation, and prunes at a plateau."""
        # The trainer does not count the steps of an optimiser that it did not wrap.
        has_stepped = self._has_stepped or trainer.global_step != self._last_step
        if self._steps is None or trainer.sanity_checking or not has_stepped:
            return
        self._last_step, self._has_stepped = trainer.global_step, False
        if self._plateau.is_best(monitored(self.monitor, trainer, self._logged.of_module(trainer))):
            self._best = copied(pl_module)
        if self._plateau.is_reached:
            if not self._best:
                raise ValueError(f"LobsterPruning cannot prune: {self.monitor!r} was finite in no validation.")
            self._prune(trainer, pl_module)
        self._before = None

    @torch.inference_mode(False)  # what is made here outlives the validation that it is made in
    @torch.no_grad()
    def _prune(self, trainer: Trainer, pl_module: LightningModule) -> None:
        try:
            found, loss_before, evaluations = self._search(trainer, pl_module)
        finally:  # an interrupted search leaves the best weights
            put_back(pl_module, self._best)
        if found is not None:
            self.hold(pl_module, self._masks_at(pl_module, found.threshold))
            self._best = copied(pl_module)
            warn_of_fall(self.monitor, loss_before, found.loss)
        loss_after = loss_before if found is None else found.loss
        assert self._sparsity is not None
        step = PruningStep(
            epoch=trainer.current_epoch,
            threshold=0.0 if found is None else found.threshold,
            sparsity=self._sparsity.network,
            loss_before=loss_before,
            loss_after=loss_after,
            evaluations=evaluations,
        )
        self.history.append(step)
        self._plateau.restart(loss_after)
        rank_zero_info(
            f"LobsterPruning: {step.sparsity:.2%} of the weights are 0 after epoch {step.epoch}, {self.monitor}"
            f" {step.loss_before:.4g} → {step.loss_after:.4g}, threshold {step.threshold:.3g}."
        )
        self._is_finished = found is None or most_prunable(self.masks, self.max_sparsity) == 0
        trainer.should_stop = trainer.should_stop or self._is_finished

    def _search(self, trainer: Trainer, pl_module: LightningModule) -> tuple[FoundThreshold | None, float, int]:
        """The threshold, the loss before, and how many evaluations were made."""
        assert self._before is not None
        evaluations = 0
        with (
            validations_without_trace(trainer, pl_module, self._before) as validate,
            progress_bar(EVALUATIONS, "validation", "Pruning") as progress,
        ):

            def evaluate(threshold: float | None) -> float:
                nonlocal evaluations
                put_back(pl_module, self._best)
                masks = {} if threshold is None else self._masks_at(pl_module, threshold)
                bound = bind_masks(pl_module, masks) if masks else []
                for each in bound:
                    each.apply()
                found = monitored(self.monitor, trainer, validate(partial(check_still_pruned, bound)))
                evaluations += 1
                progress.update()
                losses.add(found)
                return found

            losses: set[float] = set()
            is_first = not self.history
            loss = evaluate(None)
            if is_first:
                warn_of_chance(self.monitor, self._plateau.best, loss, self.tolerance)
            weights = prunable_weights(pl_module, self.include, self.exclude)
            magnitudes = {name: weight.value().abs() for name, weight in weights.items()}
            left = [magnitude[self.masks[name].to(magnitude.device)] for name, magnitude in magnitudes.items()]
            together = torch.cat([each.to(left[0].device) for each in left])
            means = [float(each[each > 0].mean()) for each in left if each.any()]
            found = find_threshold(
                evaluate,
                together,
                loss + self.tolerance * abs(loss),
                start=sum(means) / len(means) if means else 0.0,  # as in the authors' code
                most=most_prunable(self.masks, self.max_sparsity),
                evaluations=EVALUATIONS - evaluations - is_first,  # the first search may end with a further one
            )
            none_matters = found is not None and losses == {loss} and is_first
            if none_matters and evaluate(2.0 * float(together.max())) == loss:
                refuse_constant(self.monitor, loss)
        return found, loss, evaluations

    def _masks_at(self, pl_module: LightningModule, threshold: float) -> dict[str, Tensor]:
        masks = magnitude_masks(pl_module, threshold=threshold, include=self.include, exclude=self.exclude)
        return {name: mask & self.masks[name].to(mask.device) for name, mask in masks.items()}

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs: masks, history, the best weights, and how long they have been the best."""
        plateau = asdict(self._plateau)
        return {
            **super().state_dict(),
            "history": [asdict(step) for step in self.history],
            "best": dict(self._best),
            "plateau": {name: plateau[name] for name in ("best", "reference", "waited")},
            "last_step": self._last_step,
            "has_stepped": self._has_stepped,
            "is_finished": self._is_finished,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a training where a checkpoint left it."""
        super().load_state_dict(state_dict)
        self.history = [PruningStep(**step) for step in state_dict["history"]]
        self._best = dict(state_dict["best"])
        self._plateau = Plateau(self.patience, self.min_improvement, **state_dict["plateau"])
        self._last_step = state_dict["last_step"]
        self._has_stepped = state_dict["has_stepped"]
        self._is_finished = state_dict["is_finished"]
