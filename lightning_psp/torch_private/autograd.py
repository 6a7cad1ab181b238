"""Autograd and modes: whether a backward pass runs, hooks, nodes, and working unseen by modes."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils import checkpoint as torch_checkpoint

from lightning_psp.torch_private.names import find, lacking

_DisableTorchFunction: Any = find("torch._C.DisableTorchFunction")


def _untold() -> NoReturn:
    lacking("torch._C._current_graph_task_id", "a recomputation cannot be told from a step", "Use another version.")


_current_graph_task_id: Callable[[], int] = find("torch._C._current_graph_task_id") or _untold
_len_torch_dispatch_stack: Any = find("torch._C._len_torch_dispatch_stack")
_disable_current_modes: Any = find("torch.utils._python_dispatch._disable_current_modes")

# What torch's `checkpoint` calls to make the generator around the first run of a function, by its name in this version.
# Without it, potentials inside a checkpoint are held from their first run on: right, at the cost of their memory.
CHECKPOINT_GENERATORS = [
    name
    for name in ("_checkpoint_without_reentrant_generator_impl", "_checkpoint_without_reentrant_generator")
    if hasattr(torch_checkpoint, name)
][:1]


def in_backward() -> bool:
    """Whether a backward pass is running in this thread: a call of a module is part of a recomputation then.

    Raises:
        NotImplementedError: if this version of torch does not tell.

    Example:
        >>> import torch
        >>> x = torch.ones(1, requires_grad=True)
        >>> handle = x.register_hook(lambda gradient: print(in_backward()))
        >>> (2 * x).backward()
        True
        >>> in_backward()
        False
    """
    return _current_graph_task_id() != -1


def without_dispatch_modes() -> AbstractContextManager[Any]:
    """While entered, no mode, such as that of a selective checkpoint, is told of the operations of torch.

    Raises:
        NotImplementedError: if this version of torch cannot do so.

    Example:
        >>> import torch
        >>> with without_dispatch_modes():
        ...     torch.ones(1) + 1
        tensor([2.])
    """
    if _disable_current_modes is None:
        lacking(
            "torch.utils._python_dispatch._disable_current_modes",
            "what is kept of potentials inside an activation checkpoint would be run again",
            "Train without checkpoints.",
        )
    if _len_torch_dispatch_stack is not None and _len_torch_dispatch_stack() == 0:
        return nullcontext()
    context: AbstractContextManager[Any] = _disable_current_modes()
    return context


def hooks_of(tensor: Tensor) -> MutableMapping[int, Any]:
    """The hooks on a tensor that has one, by their number and in the order in which they run.

    Raises:
        NotImplementedError: if this version of torch does not show them.

    Example:
        >>> import torch
        >>> x = torch.ones(1, requires_grad=True)
        >>> handle = x.register_hook(torch.neg)
        >>> [*hooks_of(x).values()] == [torch.neg]
        True
    """
    hooks: MutableMapping[int, Any] | None = getattr(tensor, "_backward_hooks", None)
    if hooks is None:
        lacking("Tensor._backward_hooks", "a hook on the loss could change the penalty", "Use another version.")
    return hooks


def function_of(node: Any) -> type:
    """The `torch.autograd.Function` that a node of the graph stands for; the node's own class where that is not told.

    Example:
        >>> import torch
        >>> function_of(torch.ones(1, requires_grad=True).exp().grad_fn).__name__
        'ExpBackward0'
    """
    function: type = getattr(node, "_forward_cls", type(node))
    return function


def node_of(tensor: Tensor) -> Any:
    """The node of the graph that gave a tensor, or None; asked for past modes of functions where this can be done.

    Example:
        >>> import torch
        >>> node_of(torch.ones(1, requires_grad=True).exp()).name()
        'ExpBackward0'
    """
    if _DisableTorchFunction is None:
        return tensor.grad_fn
    with _DisableTorchFunction():
        return tensor.grad_fn


class _Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


@cache
def _nodes_of_functions_hold_their_graph() -> bool:
    with unwatched(), without_dispatch_modes(), torch.inference_mode(False), torch.enable_grad():
        node: Any = _Identity.apply(torch.ones(1, requires_grad=True)).grad_fn
    try:
        return bool(node.next_functions)
    except RuntimeError:
        return False


def holder_of(tensor: Tensor) -> Any:
    """What to hold beside the node that gave a tensor, to follow it when the tensor is gone; None if nothing.

    Up to PyTorch 2.11 the node of a `torch.autograd.Function`, compiled code's included, cannot be by itself.

    Example:
        >>> import torch
        >>> holder_of(torch.ones(1, requires_grad=True).exp()) is None
        True
    """
    node: Any = tensor.grad_fn
    if not isinstance(node, torch.autograd.function.BackwardCFunction) or _nodes_of_functions_hold_their_graph():
        return None
    with unwatched(), without_dispatch_modes(), torch.inference_mode(False), torch.enable_grad():
        return tensor.view_as(tensor).grad_fn


def notes_at(node: Any) -> MutableMapping[Any, Any]:
    """What autograd keeps for others with a node of the graph, as long as the node is there.

    Up to PyTorch 2.11 that of a `torch.autograd.Function` may be gone, of which nothing is kept then.

    Example:
        >>> import torch
        >>> notes_at(torch.ones(1, requires_grad=True).exp().grad_fn)
        {}
    """
    try:
        notes: MutableMapping[Any, Any] = node.metadata
    except RuntimeError:
        return {}
    return notes


def unwatched() -> AbstractContextManager[None]:
    """While entered, no `TorchFunctionMode` is told of functions.

    Raises:
        NotImplementedError: if this version of torch cannot do so.

    Example:
        >>> import torch
        >>> with unwatched():
        ...     torch.sigmoid(torch.zeros(1))
        tensor([0.5000])
    """
    if _DisableTorchFunction is None:
        lacking("torch._C.DisableTorchFunction", "there is no entropy term", "Train with entropy_weight=0.")
    context: AbstractContextManager[None] = _DisableTorchFunction()
    return context
