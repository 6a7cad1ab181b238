"""Masks: which weights of a network stay, and which are 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lightning_psp.functional.arguments import check_choice, check_integer, check_number
from lightning_psp.pruning.bound_masks import Masks, bind_masks, check_masks
from lightning_psp.pruning.prunable import prunable_weights

Scope = Literal["global", "layer"]


def magnitude_masks(
    module: nn.Module,
    *,
    sparsity: float | None = None,
    threshold: float | None = None,
    scope: Scope = "global",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> dict[str, Tensor]:
    r"""Masks that take away the smallest weights of linear and (transposed) convolution layers.

    With `threshold` T a weight w goes where :math:`|w| < T` (Tartaglione et al., 2020, Section 3). With `sparsity` S
    the smallest go: exactly ``round(S · n)`` of n weights, of equal ones those that come first. The module is not
    changed; :func:`apply_masks` does that.

    With weight norm, w is the weight that the layer computes with, and the mask has the name of the direction that it
    is made from.

    Args:
        module: the network.
        sparsity: share of the prunable weights that goes, from 0 to 1; weights that are 0 already are the first.
        threshold: magnitude below which a weight goes, 0 or more.
        scope: whether `sparsity` is the share of all prunable weights together (``"global"``), or of those of each
            parameter (``"layer"``).
        include: glob patterns on parameter names.
        exclude: glob patterns on parameter names.

    Returns:
        Name of each prunable parameter, as in ``module.named_parameters()``, to a bool tensor of its shape and on its
        device: True where the weight stays. A parameter that several layers share is one entry.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if not exactly one of `sparsity` and `threshold` is given, or one is outside its range; if a weight
            is NaN; and as :func:`~lightning_psp.pruning.prunable.prunable_parameters`.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> _ = network[0].weight.data.copy_(torch.tensor([[0.1, -2.0], [3.0, -0.4]]))
        >>> _ = network[2].weight.data.copy_(torch.tensor([[0.3, 5.0]]))
        >>> magnitude_masks(network, sparsity=0.5)
        {'0.weight': tensor([[False,  True],
                [ True, False]]), '2.weight': tensor([[False,  True]])}
    """
    if (sparsity is None) == (threshold is None):
        raise ValueError(
            "Expected exactly one of the arguments `sparsity` and `threshold` but got"
            f" sparsity={sparsity!r}, threshold={threshold!r}."
        )
    check_choice("scope", scope, get_args(Scope))
    if threshold is not None:
        check_number("threshold", threshold, at_least=0)
    if sparsity is not None:
        check_number("sparsity", sparsity, at_least=0, at_most=1)
    magnitudes = {name: weight.value().abs() for name, weight in prunable_weights(module, include, exclude).items()}
    for name, magnitude in magnitudes.items():
        if magnitude.isnan().any():
            raise ValueError(f"Parameter {name!r} holds NaN, which has no magnitude to prune by.")
    if threshold is not None:
        return {name: magnitude >= threshold for name, magnitude in magnitudes.items()}
    assert sparsity is not None
    if scope == "layer":
        return {name: ~_smallest(magnitude, sparsity) for name, magnitude in magnitudes.items()}
    device = next(iter(magnitudes.values())).device
    together = torch.cat([magnitude.flatten().to(device) for magnitude in magnitudes.values()])
    parts = (~_smallest(together, sparsity)).split([magnitude.numel() for magnitude in magnitudes.values()])
    return {
        name: part.view(magnitude.shape).to(magnitude.device)
        for (name, magnitude), part in zip(magnitudes.items(), parts, strict=True)
    }


def random_masks_like(masks: Masks, *, seed: int) -> dict[str, Tensor]:
    """Masks that keep as many weights of each parameter, at random places: the structure, without its choice.

    Args:
        masks: name of each parameter to a bool tensor, True where a weight stays.
        seed: of the places; the same for the same masks in the same order, whatever their device.

    Returns:
        Masks of the same names and shapes.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if there is no mask.

    Example:
        >>> masks = {"weight": torch.tensor([[True, False, False], [False, False, True]])}
        >>> random_masks_like(masks, seed=0)
        {'weight': tensor([[False, False,  True],
                [False, False,  True]])}
    """
    check_masks(masks)
    check_integer("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, mask in masks.items():
        order = torch.randperm(mask.numel(), generator=generator)
        drawn = torch.zeros(mask.numel(), dtype=torch.bool)
        drawn[order[: int(mask.sum())]] = True
        found[name] = drawn.view(mask.shape).to(mask.device)
    return found


def apply_masks(module: nn.Module, masks: Masks) -> None:
    """Sets the weights to 0 that masks take away, in place; the other weights stay as they are.

    With weight norm a mask on the direction v does that to the weight g·v/‖v‖: the length g shrinks with the direction,
    and where a whole direction is taken away, g is 0 and v, without which the weight would be NaN, is 1.

    Args:
        module: the network.
        masks: name of a parameter, any of the names that it has in the network, to a bool tensor of its shape.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if there is no mask, or a name or shape does not fit; nothing is changed then.
        NotImplementedError: if a parameter is sharded over processes.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> apply_masks(layer, {"weight": torch.tensor([[True, False]])})
        >>> (layer.weight == 0).tolist()
        [[False, True]]
    """
    for each in bind_masks(module, masks):
        each.apply()


def _smallest(magnitudes: Tensor, share: float) -> Tensor:
    """True for exactly `round(share · n)` of the numbers, the smallest ones and of equal ones the first."""
    flat = magnitudes.flatten()
    count = round(share * flat.numel())
    if count == 0:
        return torch.zeros_like(magnitudes, dtype=torch.bool)
    # not all devices select among numbers of half precision
    flat = flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat
    largest = flat.kthvalue(count).values
    goes = flat < largest
    ties = (flat == largest).nonzero().flatten()
    goes[ties[: count - int(goes.sum())]] = True
    return goes.view(magnitudes.shape)
