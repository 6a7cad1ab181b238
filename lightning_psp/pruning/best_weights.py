"""Keeping the weights of a module, and putting them back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


@torch.inference_mode(False)  # copies are to outlive the validation that they are made in
@torch.no_grad()
def copied(module: nn.Module) -> dict[str, Tensor]:
    """The values of all parameters and buffers by name.

    Example:
        >>> list(copied(nn.BatchNorm1d(2)))
        ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    """
    return {name: tensor.clone() for name, tensor in (*module.named_parameters(), *module.named_buffers())}


@torch.no_grad()
def put_back(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Gives all parameters and buffers the values that they had.

    A buffer whose shape has changed since, such as a table that grows with its inputs, is replaced by a copy of what it
    was, and so is one that is expanded; one that has come since stays as it is.

    Args:
        module: the module.
        values: what :func:`copied` gave.

    Raises:
        RuntimeError: if a parameter has come since, or has another shape; nothing is changed then.

    Example:
        >>> module = nn.Linear(1, 1)
        >>> before = copied(module)
        >>> _ = nn.init.constant_(module.weight, 5.0)
        >>> put_back(module, before)
        >>> torch.equal(module.weight, before["weight"])
        True
    """
    parameters = dict(module.named_parameters())
    for name, parameter in parameters.items():
        if name not in values or values[name].shape != parameter.shape:
            raise RuntimeError(
                f"LobsterPruning cannot put the best weights back, for parameter {name!r} was not there, or had another"
                " shape, when they were the best. Make all parameters before the fit starts."
            )
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
    for name, buffer in module.named_buffers():
        if name not in values:
            continue
        if buffer.shape == values[name].shape and not _is_expanded(buffer):
            buffer.copy_(values[name])
        else:
            path, _, own = name.rpartition(".")
            setattr(module.get_submodule(path), own, values[name].to(buffer.device, copy=True))


def _is_expanded(tensor: Tensor) -> bool:
    """Whether entries of a tensor lie in one place, so that torch writes to none of them."""
    if tensor.layout != torch.strided:
        return False
    return any(size > 1 and step == 0 for size, step in zip(tensor.shape, tensor.stride(), strict=True))
