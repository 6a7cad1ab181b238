"""Activation checkpointing: a potential inside a checkpointed function is computed again instead of being held.

A checkpointed function runs a first time in the forward pass, where autograd's saved tensors become place holders, and
a second time in the backward pass, which gives these their values. A potential inside is saved for the backward pass
like any other tensor of autograd: in the first pass it becomes one place holder more, and the second pass saves it at
the same call. So torch itself sees to early stops, nested checkpoints and several backward passes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint as torch_checkpoint
from torch.utils.checkpoint import CheckpointFunction

from lightning_psp.capture.functions import TorchFunction
from lightning_psp.capture.nonlinearities import Activation
from lightning_psp.torch_private.autograd import CHECKPOINT_GENERATORS, without_dispatch_modes
from lightning_psp.torch_private.tensors import map_tensors


class Region:
    """One call of a checkpointed function.

    Args:
        functions: the functions whose calls are counted, and for those that may overwrite their first argument how.
    """

    def __init__(self, functions: Mapping[TorchFunction, Activation | None]) -> None:
        self.functions = functions
        self.calls = 0
        self.saved: set[int] = set()  # the calls whose first argument is saved


class Checkpoints:
    """The checkpointed functions that run in a watch.

    While installed, `torch.utils.checkpoint` tells of each checkpointed function in this thread, and runs reentrant
    checkpoints as non-reentrant ones, which give the same gradients and have their potentials in the graph.

    Args:
        functions: the functions whose first argument can be saved, and for those that may overwrite it how.
    """

    def __init__(self, functions: Mapping[TorchFunction, Activation | None]) -> None:
        self.regions: list[Region] = []  # that are running, the innermost last
        self.thread = 0
        self._functions = functions
        self._can_save = False
        self._argument: Any = None  # of the running function, or a copy that takes its place

    def install(self) -> None:
        """Starts to hear of checkpointed functions."""
        self.regions = []
        self.thread = threading.get_ident()
        _replaced.__enter__()
        _installed.append(self)

    def uninstall(self) -> None:
        """Leaves `torch.utils.checkpoint` as it was; does nothing if not installed."""
        if self in _installed:
            _installed.remove(self)
            _replaced.__exit__()
        self.regions = []

    @contextmanager
    def region(self) -> Iterator[Region]:
        """A checkpointed function runs for the first time."""
        region = Region(self._functions)
        self.regions.append(region)
        try:
            yield region
        finally:
            # After an error, torch may end a region late.
            if region in self.regions:
                self.regions.remove(region)

    @contextmanager
    def call(self, func: TorchFunction, argument: Any) -> Iterator[None]:
        """A function is called, whose first argument :meth:`save` may save."""
        self._can_save = func in self._functions and bool(self.regions)
        self._argument = argument
        if self._can_save:
            for region in self.regions:
                region.calls += 1
        try:
            yield
        finally:
            self._can_save, self._argument = False, None

    def replace_argument(self, copied: Tensor) -> None:
        """Has a copy take the place of the first argument of the running call."""
        self._argument = copied

    def save(self, z: Tensor, in_place: bool) -> Tensor | None:
        """Has the first argument of the running call saved for the backward pass without being held.

        Args:
            z: the tensor.
            in_place: whether the call is about to overwrite it.

        Returns:
            What :func:`restore` makes the tensor of in the backward pass; None outside a checkpointed function, or
            where the recomputation would not come by the tensor again at this call.
        """
        if not self._can_save or z is not self._argument:
            return None
        self._can_save = False
        region = self.regions[-1]
        region.saved.add(region.calls)
        # Hooks for saved tensors that are entered inside the function may hold what they are given.
        return _save_for_backward(z.clone() if in_place else z)

    def unseen(self) -> AbstractContextManager[Any]:
        """Hides what happens inside from the modes of a selective checkpoint, which would replay it."""
        return without_dispatch_modes() if self.regions else nullcontext()


class _Save(torch.autograd.Function):
    """Saves a tensor for a backward pass that never comes."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z.new_empty(0)


def _save_for_backward(z: Tensor) -> Tensor:
    with torch.enable_grad():
        placeholder: Tensor = _Save.apply(z)
    return placeholder


def restore(placeholder: Tensor) -> Tensor:
    """The tensor for which a place holder stands; runs the checkpointed function again where no other has done so.

    Raises:
        CheckpointError: if the recomputation saves other tensors than the first pass.
    """
    node: Any = placeholder.grad_fn
    (saved,) = node.saved_tensors
    restored: Tensor = saved.detach()
    return restored


class _Recomputation(TorchFunctionMode):
    """While entered, counts the calls of the second pass and saves what the first pass saved.

    Args:
        region: the first pass.
    """

    def __init__(self, region: Region) -> None:
        super().__init__()
        self._region = region
        self._calls = 0

    def __torch_function__(
        self, func: TorchFunction, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._region.functions:
            self._calls += 1
            if self._calls in self._region.saved:
                z = args[0] if args else kwargs["input"]
                activation = self._region.functions[func]
                with without_dispatch_modes():
                    is_overwritten = activation is not None and activation.overwrites(args, kwargs)
                    _save_for_backward(z.clone() if is_overwritten else z)
        return func(*args, **kwargs)


def _recompute(region: Region, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    # A reentrant checkpoint inside this one is to save what it saved in the first pass.
    with _replaced, _Recomputation(region):
        return function(*args, **kwargs)


def _generator(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Generator[None, None, None]:
    """In place of torch's generator, which surrounds the first pass and is given what the second pass runs."""
    original = _replaced.originals[CHECKPOINT_GENERATORS[0]]
    owners = [owner for owner in _installed if owner.thread == threading.get_ident()]
    with ExitStack() as stack:
        if torch.is_grad_enabled():
            for owner in reversed(owners):
                function = partial(_recompute, stack.enter_context(owner.region()), function)
        yield from original(function, *args, **kwargs)


class _NonReentrant(CheckpointFunction):
    """In place of torch's reentrant checkpoint."""

    @classmethod
    def apply(cls, function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        # A reentrant checkpoint gives gradients to its parameters only where one of its inputs asks for one.
        if not any(isinstance(arg, Tensor) and arg.requires_grad for arg in args):
            original = _replaced.originals["CheckpointFunction"]
            return original.apply(function, preserve_rng_state, *args)
        result = torch_checkpoint.checkpoint(
            function, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state, determinism_check="none"
        )
        if isinstance(result, tuple):
            return tuple(_detach_parts(part) for part in result)
        return _detach_parts(result)


def _detach_parts(result: Any) -> Any:
    """Tensors inside other objects have no gradient when a reentrant checkpoint returns them."""
    return result if isinstance(result, Tensor) else map_tensors(Tensor.detach, result)


class _Replaced:
    """While entered, in however many places, the functions that torch's `checkpoint` calls are replaced."""

    def __init__(self) -> None:
        self.originals: dict[str, Any] = {}
        self._replacements: dict[str, Any] = {
            **dict.fromkeys(CHECKPOINT_GENERATORS, _generator),
            "CheckpointFunction": _NonReentrant,
        }
        self._lock = threading.Lock()  # the backward passes of several devices run in threads of their own
        self._entered = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._entered:
                self.originals = {name: getattr(torch_checkpoint, name) for name in self._replacements}
                vars(torch_checkpoint).update(self._replacements)
            self._entered += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._entered -= 1
            if not self._entered:
                vars(torch_checkpoint).update(self.originals)


_installed: list[Checkpoints] = []
_replaced = _Replaced()
