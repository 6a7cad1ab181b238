"""How large the share of weights is that are 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from lightning_psp.pruning.bound_masks import Masks, check_masks
from lightning_psp.pruning.prunable import prunable_weights, select


@dataclass(frozen=True)
class Sparsity:
    """Shares of weights that are 0, from 0 to 1.

    Args:
        network: of all weights together.
        layers: name of each parameter to the share of its weights.
    """

    network: float
    layers: dict[str, float]


def sparsity(
    module_or_masks: nn.Module | Masks, *, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> Sparsity:
    """The share of weights that are 0, of a network and of each of its prunable parameters.

    A module is read by the weights that its linear and convolution layers compute with, masks as they are.

    Args:
        module_or_masks: a network, or name of each parameter to a bool tensor, True where a weight stays.
        include: glob patterns on parameter names.
        exclude: glob patterns on parameter names.

    Returns:
        The shares of the network and of each parameter.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if there is no mask, a pattern matches no name, or as
            :func:`~lightning_psp.pruning.prunable.prunable_parameters`.

    Example:
        >>> import torch
        >>> sparsity({"0.weight": torch.tensor([True, False]), "2.weight": torch.tensor([True, False, False, False])})
        Sparsity(network=0.6666666666666666, layers={'0.weight': 0.5, '2.weight': 0.75})
    """
    if isinstance(module_or_masks, nn.Module):
        weights = prunable_weights(module_or_masks, include, exclude)
        zeros = {name: weight.value() == 0 for name, weight in weights.items()}
    else:
        check_masks(module_or_masks, "module_or_masks", "be a network or to ")
        names = select({name: (name,) for name in module_or_masks}, include, exclude)
        zeros = {name: ~module_or_masks[name] for name in names}
    counts = {name: int(mask.sum()) for name, mask in zeros.items()}
    sizes = {name: mask.numel() for name, mask in zeros.items()}
    # a parameter without any weight has no zeros
    layers = {name: count / max(1, sizes[name]) for name, count in counts.items()}
    return Sparsity(sum(counts.values()) / max(1, sum(sizes.values())), layers)


def most_prunable(masks: Masks, max_sparsity: float | None) -> int:
    """How many more weights may be set to 0 before masks reach a sparsity, or one weight alone stays.

    Example:
        >>> import torch
        >>> most_prunable({"0.weight": torch.tensor([True, True, True, False])}, max_sparsity=0.5)
        1
    """
    weights = sum(mask.numel() for mask in masks.values())
    stay = sum(int(mask.sum()) for mask in masks.values())
    allowed = weights - 1 if max_sparsity is None else round(max_sparsity * weights)
    return max(0, stay - (weights - min(allowed, weights - 1)))
