"""Having torch compute in ways that can be differentiated twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


@contextmanager
def twice_differentiable(module: nn.Module) -> Iterator[None]:
    """Has a network run without kernels that have no second derivative, or a wrong one, while the block runs.

    These are compiled code, fused attention, recurrent layers of cuDNN, the hard sigmoid and weight norm.
    """
    is_recurrent = any(isinstance(part, nn.RNNBase) for part in module.modules())
    with (
        torch.compiler.set_stance("force_eager"),
        sdpa_kernel(SDPBackend.MATH),
        torch.backends.cudnn.flags(enabled=False) if is_recurrent else nullcontext(),
        _WrittenOut(),
    ):
        yield


def gradients(
    outputs: Sequence[Tensor], weights: Sequence[Tensor], directions: Sequence[Tensor] | None = None, **options: bool
) -> list[Tensor]:
    """The gradients of outputs with respect to weights, 0 where there are none.

    Raises:
        NotImplementedError: if an operation has no second derivative.
    """
    try:
        return list(torch.autograd.grad(outputs, weights, directions, materialize_grads=True, **options))
    except RuntimeError as error:
        if not any(text in str(error) for text in ("not implemented", "differentiate twice", "double backward")):
            raise
        raise NotImplementedError(
            f"The loss cannot be differentiated twice, which its Hessian needs: {error}. Write the operation out in"
            " functions of torch that have a second derivative."
        ) from error


class _WrittenOut(TorchFunctionMode):
    """Writes out functions whose own second derivatives torch lacks, or gets wrong: that of weight norm (to 2.14)."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called in place of every function of torch."""
        written_out = _WRITTEN_OUT.get(getattr(func, "__name__", ""), func)
        return written_out(*args, **(kwargs or {}))


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    result = functional.relu6(input + 3) / 6
    return input.copy_(result) if inplace else result


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


_WRITTEN_OUT: dict[str, Callable[..., Any]] = {"hardsigmoid": _hardsigmoid, "_weight_norm": _weight_norm}
