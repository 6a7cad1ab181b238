"""Noticing that an optimiser has moved some parameters, however its step was called."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lightning_psp.torch_private.optimizers import has_unscaled

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class OptimizerSteps:
    """Calls a function right after each step of any optimiser that holds one of some parameters.

    That is the step as torch sees it: it does not matter whether a trainer takes it or the user's own code, in
    automatic or manual optimisation, how many optimisers there are and whether the trainer knows them, and whether they
    are fused. The function is called before anything else can use the moved parameters. A step that loss scaling skips
    is none. The closure of LBFGS runs several times within one step.

    An optimiser may take its step through another one of the same parameters (a wrapper, or `super().step()`). The
    function is told then which steps are parts of another, so that it can do some things once for each whole step.

    Gradients. When the function is called, ``parameter.grad`` is what the optimiser was given: clipped, in automatic
    optimisation. The gradient before clipping is there in the callback hook `on_before_optimizer_step`, which Lightning
    calls before each step of its own (of LBFGS before each closure's end); there it is unscaled already, but for
    optimisers that do that themselves: divide it by :func:`gradient_scale`.

    Args:
        parameters: the parameters; more can be watched later (:meth:`watch`).
        after_step: is given the optimiser, and whether its step is a part of another's.
        before_step: is given the optimiser right before its step, unless the step is a part of another's or computes
            its gradients itself, by a closure.

    Example:
        >>> import torch
        >>> layer = nn.Linear(1, 1)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> steps = OptimizerSteps([layer.weight], lambda optimizer, is_part: print(type(optimizer).__name__, is_part))
        >>> optimizer.step()
        SGD False
        >>> steps.close()
        >>> optimizer.step()
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        after_step: Callable[[Optimizer, bool], None],
        before_step: Callable[[Optimizer], None] = lambda optimizer: None,
    ) -> None:
        self._after_step, self._before_step = after_step, before_step
        self._stepping: list[Optimizer] = []
        self.watch(parameters)
        self._handles = (
            register_optimizer_step_pre_hook(self._enter),
            register_optimizer_step_post_hook(self._leave),
        )

    def watch(self, parameters: Iterable[nn.Parameter]) -> None:
        """Watches these parameters, and no longer those of before."""
        # holds them, for the identity of one that is gone can become another's
        self._watched = {id(parameter): parameter for parameter in parameters}

    def forget_unfinished(self) -> None:
        """To be called where no step is under way.

        One that ended with an exception, which was caught, would have later steps taken for parts of it.
        """
        self._stepping.clear()

    def close(self) -> None:
        """Calls the function no longer."""
        for handle in self._handles:
            handle.remove()

    def _enter(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        is_part = bool(self._stepping)
        self._stepping.append(optimizer)
        has_closure = any(map(callable, (*args, *kwargs.values())))
        if not is_part and not has_closure and self._watched_of(optimizer):
            self._before_step(optimizer)

    def _leave(self, optimizer: Optimizer, *_: Any) -> None:
        while self._stepping and self._stepping.pop() is not optimizer:
            pass
        own = self._watched_of(optimizer)
        if own and not _was_skipped(optimizer):
            self._after_step(optimizer, any(own & self._watched_of(outer) for outer in self._stepping))

    def _watched_of(self, optimizer: Optimizer) -> set[int]:
        return {id(p) for group in optimizer.param_groups for p in group["params"]} & self._watched.keys()


def is_of_torch(optimizer: Optimizer) -> bool:
    """Whether an optimiser is one of torch's own, of which is known what it does."""
    return type(optimizer).__module__.startswith("torch.optim.")


def gradient_scale(trainer: Trainer, optimizer: Optimizer) -> float:
    """The factor that gradients still have in `on_before_optimizer_step`, where this optimiser unscales them itself.

    That is so for fused optimisers under fp16 loss scaling; otherwise the factor is 1, also where the user's own code
    has unscaled them.
    """
    scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
    unscales_itself = getattr(optimizer, "_step_supports_amp_scaling", False)
    is_scaled = scaler is not None and unscales_itself and not has_unscaled(scaler, optimizer)
    return float(scaler.get_scale()) if is_scaled else 1.0


def _was_skipped(optimizer: Optimizer) -> bool:
    """Whether loss scaling has found infinite gradients and had a fused optimiser leave out its step."""
    found_inf = getattr(optimizer, "found_inf", None)
    return isinstance(found_inf, Tensor) and bool(found_inf)
