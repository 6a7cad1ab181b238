"""Kinds of tensors that are no potentials."""

from __future__ import annotations

import torch
from torch import Tensor

_is_batched = torch._C._functorch.is_batchedtensor
_is_tracking_gradient = torch._C._functorch.is_gradtrackingtensor


def is_of_another_kind(z: Tensor) -> bool:
    """Whether a tensor asks for gradient and is of a kind that no penalty is defined for here."""
    return z.requires_grad and (z.is_complex() or z.layout is not torch.strided or z.is_nested)


def is_transformed(z: Tensor) -> bool:
    """False, unless a transformation of functions runs the network.

    Raises:
        NotImplementedError: inside `torch.vmap`, `torch.func.grad` and their like.
    """
    if _is_batched(z):
        raise NotImplementedError(
            "Potentials inside `torch.vmap` cannot be seen as the tensors of one batch. Call the network on the batch."
        )
    if _is_tracking_gradient(z):
        raise NotImplementedError(
            "Potentials inside `torch.func.grad` and its like cannot be penalised. Call the network as ever, and"
            " `torch.autograd.grad(..., create_graph=True)` on its output."
        )
    return False
