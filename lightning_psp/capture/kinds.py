"""Kinds of tensors that are no potentials."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_psp.torch_private.tensors import transformation_of

_REFUSED = {
    "vmap": (
        "Potentials inside `torch.vmap` cannot be seen as the tensors of one batch. Call the network, or the loss, on"
        " the batch."
    ),
    "grad": (
        "Potentials inside `torch.func.grad` and its like cannot be penalised. Call the network as ever, and"
        " `torch.autograd.grad(..., create_graph=True)` on its output."
    ),
    "unknown": (
        "Potentials inside `torch.vmap`, `torch.func.grad` and their like can neither be seen nor penalised. Call the"
        " network as ever, on a batch."
    ),
}


def is_of_another_kind(z: Tensor) -> bool:
    """Whether a tensor asks for gradient and is of a kind that no penalty is defined for here."""
    return z.requires_grad and (z.is_complex() or z.layout is not torch.strided or z.is_nested)


def is_transformed(z: Tensor) -> bool:
    """False, unless a transformation of functions runs the network.

    Raises:
        NotImplementedError: inside `torch.vmap`, `torch.func.grad` and their like.
    """
    transformation = transformation_of(z)
    if transformation is None:
        return False
    raise NotImplementedError(_REFUSED[transformation])
