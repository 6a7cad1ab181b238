"""Keeping pruned weights at 0 while a trainer fits."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from lightning_psp.lightnings import AnyCallback, OnlyOne, refuse_other_lightning
from lightning_psp.pruning.bound_masks import BoundMask, bind_masks
from lightning_psp.pruning.optimizer_steps import OptimizerSteps, is_of_torch
from lightning_psp.pruning.shares import Sparsity, sparsity
from lightning_psp.torch_private.optimizers import tells_of_steps

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

_SHARDING_STRATEGIES = ("FSDPStrategy", "DeepSpeedStrategy")


class HoldsMasks(OnlyOne):
    """A callback with masks, under which weights stay exactly 0 from the start of a fit to its end.

    They are 0 after every step of an optimiser, at every validation (also one of averaged weights), in every
    checkpoint (also one of averaged weights, and one made because of an exception), and when the fit has ended. The
    module is as it was besides: no parameter has another name, no module a hook, and a saved model loads without this
    package.

    What derives from it

    - sets `masks` before `on_fit_start`, and changes them during a fit with :meth:`hold`;
    - overrides :meth:`before_step`, and :meth:`after_step` for what it does to the weights after each optimiser step,
      which comes before the masks;
    - keeps each of its arguments as an attribute of the same name, and calls the hooks here from its own.

    The trainer's callbacks are put in another order: those that hold masks are the first when a fit starts, so that
    others see pruned weights, and the last but checkpoint callbacks afterwards, so that averaged weights which others
    put into the module are pruned, too.

    Logged per epoch: ``pruning/sparsity`` and ``pruning_sparsity/<parameter>``, the shares of the masks' weights that
    are 0.

    `masks` are on the CPU; they are a part of `state_dict`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.masks: dict[str, Tensor] = {}
        self._bound: list[BoundMask] = []
        self._steps: OptimizerSteps | None = None
        self._sparsity: Sparsity | None = None
        self._has_held = False
        self._is_resumed = False
        self._trusts_versions = True

    def __repr__(self) -> str:
        arguments = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        shown = {
            name: f"<tensors: {len(value)}>" if isinstance(value, Mapping) else repr(value)
            for name, value in arguments.items()
        }
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in shown.items())})"

    def before_step(self, optimizer: Optimizer) -> None:
        """What is done before a step of `optimizer` whose gradients are there already; see :class:`OptimizerSteps`."""

    def after_step(self, optimizer: Optimizer) -> None:
        """What is done after a step of `optimizer`, before masks are applied; see :class:`OptimizerSteps`."""

    @torch.inference_mode(False)  # a validation may be under way, whose tensors no later training could use
    def hold(self, pl_module: LightningModule, masks: Mapping[str, Tensor]) -> None:
        """Takes these masks from now on; errors as :func:`~lightning_psp.pruning.apply_masks`."""
        bound = bind_masks(pl_module, masks)
        self.masks = {name: mask.to("cpu", copy=True) for name, mask in masks.items()}
        self._sparsity = sparsity(self.masks)
        self._bound = bound
        if self._steps is not None:
            self._steps.watch(each.weight.parameter for each in bound)
        self._apply()

    @property
    def is_resumed(self) -> bool:
        """Whether the fit that starts goes on from a checkpoint of the middle of one; known from `on_fit_start` on."""
        return self._is_resumed

    # --- beginning and end -----------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what cannot hold masks."""
        refuse_other_lightning(trainer, pl_module)
        super().setup(trainer, pl_module, stage)
        self._has_held = self._is_resumed = False
        if stage != "fit":
            return
        kinds = [kind.__name__ for kind in type(trainer.strategy).__mro__]
        if any(kind in _SHARDING_STRATEGIES for kind in kinds):
            raise NotImplementedError(
                f"{type(self).__name__} cannot keep weights at 0 that {kinds[0]} shards over processes. Use"
                " DDPStrategy(), which keeps whole parameters in each process."
            )
        callbacks: list[AnyCallback] = trainer.callbacks  # type: ignore[attr-defined]
        others = [each for each in callbacks if isinstance(each, HoldsMasks) and each is not self]
        if others:
            raise ValueError(
                f"A Trainer takes one callback that holds masks but got {type(self).__name__} and"
                f" {type(others[0]).__name__}. Use one after the other, in two fits."
            )
        self._reorder(trainer, is_first=True)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Notes that a fit goes on; a learning-rate search goes back to a checkpoint without any batch."""
        # Batches, not steps: the trainer does not count the steps of an optimiser that it did not wrap.
        self._is_resumed = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] > 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts to hold the masks, those of the first process in all of them."""
        for optimizer in trainer.optimizers:
            if not isinstance(optimizer, Optimizer):
                raise NotImplementedError(
                    f"{type(self).__name__} is not told of the steps of {type(optimizer).__name__}, which is no"
                    " `torch.optim.Optimizer`. Derive its class from that one."
                )
            if not tells_of_steps(optimizer):
                raise NotImplementedError(
                    f"{type(self).__name__} is not told of the steps of {type(optimizer).__name__}, whose constructor"
                    " does not call that of `torch.optim.Optimizer`. Have it do so (`super().__init__(params, {})`), or"
                    " use another optimiser."
                )
        self._trusts_versions = all(map(is_of_torch, trainer.optimizers))
        self._reorder(trainer, is_first=False)
        self._detach()
        self._steps = OptimizerSteps((), self._end_step, self.before_step)
        self.hold(pl_module, trainer.strategy.broadcast(self.masks))
        self._has_held = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves a pruned model, also where others have put averaged weights into it at the end."""
        self._rebind_and_apply(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves nothing behind."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves nothing behind, and a pruned model where a step was interrupted."""
        bound = self._bound
        self._detach()
        # a device that failed can hold nothing, and the user is to see its error
        with suppress(RuntimeError):
            for each in bound:
                each.apply()

    def _detach(self) -> None:
        if self._steps is not None:
            self._steps.close()
        self._steps = None
        self._bound = []

    def _reorder(self, trainer: Trainer, is_first: bool) -> None:
        # A new list: the trainer is walking through the old one.
        callbacks: list[AnyCallback] = [each for each in trainer.callbacks if each is not self]  # type: ignore[attr-defined]
        checkpoints: list[Any] = trainer.checkpoint_callbacks
        behind = sum(any(each is other for other in checkpoints) for each in callbacks)
        callbacks.insert(0 if is_first else len(callbacks) - behind, self)
        trainer.callbacks = callbacks  # type: ignore[attr-defined]

    def __getstate__(self) -> dict[str, Any]:
        """A copy is not attached to the trainer of the original."""
        return {**self.__dict__, "_steps": None, "_bound": []}

    # --- training --------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Applies the masks to weights that others may have put into the module."""
        self._rebind_and_apply(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Forgets a step that failed and was caught; applies the masks to weights that moved without a step.

        An optimiser may hold two sets of weights, and put the other one into the module when a validation has ended.
        Those of other libraries may do so by ``parameter.data``, where torch counts no change.
        """
        if self._steps is None:
            return
        self._steps.forget_unfinished()
        for each in self._bound:
            if self._trusts_versions:
                each.apply_again()
            else:
                each.apply()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Keeps pruned weights at 0 within a step of LBFGS, which evaluates the loss at several points of its way."""
        if isinstance(optimizer, LBFGS):
            for each in self._bound:
                each.apply_to_gradient()

    def _end_step(self, optimizer: Optimizer, is_part: bool) -> None:
        if not is_part:
            self.after_step(optimizer)
        # Those of others may be needed as they are, for a backward pass of their own that is still to come.
        moved = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for each in self._bound:
            if id(each.weight.parameter) in moved:
                each.apply()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the shares of weights that are 0."""
        if self._sparsity is None or trainer.barebones:
            return
        values = {"pruning/sparsity": self._sparsity.network}
        values.update({f"pruning_sparsity/{name}": share for name, share in self._sparsity.layers.items()})
        # The values of all processes are equal already; Lightning warns of what it does not synchronise itself.
        pl_module.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=trainer.world_size > 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Applies the masks to averaged weights."""
        self._rebind_and_apply(pl_module)

    # --- evaluation and checkpoints --------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Applies the masks to weights that others may have put into the module."""
        self._rebind_and_apply(pl_module)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Applies the masks to averaged weights, which are put into the module when a validation has begun."""
        if batch_idx == 0:
            self._apply()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Applies the masks to what is saved, which may be averaged weights."""
        if self._has_held:
            for each in bind_masks(pl_module, self.masks):
                each.apply_to_state(checkpoint["state_dict"])

    def state_dict(self) -> dict[str, Any]:
        """The masks."""
        return {"masks": dict(self.masks)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the masks of a checkpoint."""
        self.masks = dict(state_dict["masks"])

    def _apply(self) -> None:
        for each in self._bound:
            each.apply()

    def _rebind_and_apply(self, pl_module: LightningModule) -> None:
        """Applies the masks, also to parameters that have taken the place of others."""
        if self._steps is None:  # nothing is fitted
            return
        current = dict(pl_module.named_parameters())
        if any(current.get(each.weight.names[0]) is not each.weight.parameter for each in self._bound):
            self.hold(pl_module, self.masks)
        else:
            self._apply()
