"""Torch's own modules that map by their weights and do nothing else: what runs inside them need not be followed."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_psp.torch_private.modules import is_plain

# The dimension of the neurons in what they return.
_UNIT_DIMS: dict[type[nn.Module], int] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), 1),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), 1),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm), 1),
    **dict.fromkeys((nn.Linear, nn.Embedding, nn.LayerNorm), -1),
}


def unit_dim_of(module: nn.Module, inputs: tuple[Any, ...]) -> int | None:
    """The dimension of the neurons in what a module returns that does nothing but map one input by its weights.

    Asked in every call, for hooks, parametrisations and weights of another kind may come and go.

    Args:
        module: the module.
        inputs: the positional arguments that it is called with.

    Returns:
        The dimension; None for other modules, and where something may run inside that is not torch's.

    Example:
        >>> import torch
        >>> x = torch.ones(1, 2)
        >>> unit_dim_of(nn.Linear(2, 2), (x,)), unit_dim_of(nn.ReLU(), (x,))
        (-1, None)
        >>> unit_dim_of(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)), (x,)) is None
        True
    """
    unit_dim = _UNIT_DIMS.get(type(module))
    return unit_dim if unit_dim is not None and len(inputs) == 1 and is_plain(module) else None
