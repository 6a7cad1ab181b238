"""The gradients that an optimiser is about to use, from before they are clipped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_psp.pruning.optimizer_steps import gradient_scale, is_of_torch

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

# Hooks of a LightningModule in which it can change gradients.
_HOOKS = ("configure_gradient_clipping", "on_before_optimizer_step")


class UnclippedGradients:
    """Gradients as they are when `on_before_optimizer_step` is called, until the step has ended.

    They are copied only where something may change them afterwards: clipping, the LightningModule's own hooks, an
    optimiser that unscales by itself or works in its gradients. Elsewhere ``parameter.grad`` still is the same after
    the step.
    """

    def __init__(self) -> None:
        self._copies: dict[int, Tensor] = {}
        self._kept: set[int] = set()

    def keep(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer, parameters: Sequence[nn.Parameter]
    ) -> None:
        """Takes the gradients of these parameters, unscaled."""
        scale = gradient_scale(trainer, optimizer)
        self._kept.difference_update(map(id, parameters))  # those of a step that was skipped
        if scale != 1.0 or trainer.gradient_clip_val or _overrides(pl_module) or changes_gradients(optimizer):
            self._copy(parameters, scale)

    def keep_unseen(self, optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> None:
        """Takes the gradients of a step that no hook of Lightning told of; to be called right before it."""
        if changes_gradients(optimizer):
            self._copy([parameter for parameter in parameters if id(parameter) not in self._kept], 1.0)

    def _copy(self, parameters: Sequence[nn.Parameter], scale: float) -> None:
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is None:
                continue
            copied = self._copies.get(id(parameter))
            if copied is None or copied.device != gradient.device or copied.shape != gradient.shape:
                copied = self._copies[id(parameter)] = torch.empty_like(gradient)
            copied.copy_(gradient)
            if scale != 1.0:
                copied.div_(scale)
            self._kept.add(id(parameter))

    def take(self, parameters: Sequence[nn.Parameter]) -> dict[nn.Parameter, Tensor]:
        """The gradients of a step that has ended, of the parameters that have one."""
        found = {}
        for parameter in parameters:
            was_kept = id(parameter) in self._kept
            gradient = self._copies[id(parameter)] if was_kept else parameter.grad
            if gradient is not None:  # an optimiser may let go of gradients, but not of copies
                found[parameter] = gradient
            self._kept.discard(id(parameter))
        return found

    def forget(self) -> None:
        """Lets go of all copies."""
        self._copies, self._kept = {}, set()


def changes_gradients(optimizer: Optimizer) -> bool:
    """Whether ``parameter.grad`` may be another after a step.

    Of torch's optimisers that is so for Nesterov's momentum over many tensors at once (the default on a GPU), without
    weight decay. Of others nothing is known.

    Example:
        >>> weight = nn.Parameter(torch.ones(1))
        >>> changes_gradients(torch.optim.AdamW([weight]))
        False
        >>> changes_gradients(torch.optim.SGD([weight], lr=0.1, momentum=0.9, nesterov=True))
        True
    """
    return not is_of_torch(optimizer) or any(group.get("nesterov", False) for group in optimizer.param_groups)


def _overrides(pl_module: LightningModule) -> bool:
    """Whether a hook that can change gradients is the module's own."""
    return any(
        getattr(getattr(pl_module, hook), "__module__", "").partition(".")[0] not in ("lightning", "pytorch_lightning")
        for hook in _HOOKS
    )
