"""LOBSTER's decay: weights that the loss does not depend on shrink."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_psp.torch_private.foreach import absolutes, add_products_, clamp_max_, subtract_

# Numbers of a piece of a tensor, up to which torch does not share an operation out among threads, and of the pieces
# that go through all operations together: they fit a processor's cache, so memory is read and written once.
_PIECE = 1 << 15
_PIECES_TOGETHER = 1 << 18


def check_precision(name: str, dtype: torch.dtype, lam: float) -> None:
    """Raises an error where a parameter's numbers are too coarse to be made smaller by the share λ.

    Example:
        >>> check_precision("weight", torch.bfloat16, lam=1e-2)
        >>> check_precision("weight", torch.bfloat16, lam=1e-4)
        Traceback (most recent call last):
        ...
        ValueError: Expected argument `lam` to be 0 or at least 0.00390625 for parameter 'weight' in torch.bfloat16 ...
    """
    spacing = torch.finfo(dtype).eps / 2
    if 0 < lam < spacing:
        raise ValueError(
            f"Expected argument `lam` to be 0 or at least {spacing} for parameter {name!r} in {dtype} but got {lam}: a"
            " smaller share of a weight is lost in rounding. Train with weights in float32, such as by"
            " precision='bf16-mixed'."
        )


@torch.no_grad()
def sensitivity_decay(weights: Sequence[Tensor], gradients: Sequence[Tensor], lam: float) -> None:
    r"""Shrinks each weight by the share λ, the less the more the loss depends on it, in place.

    .. math:: w \leftarrow w - \lambda\, w \max\left(0, 1 - \left|\frac{\partial L}{\partial w}\right|\right)

    (LOBSTER, Tartaglione et al., 2022, without the learning rate, as in the authors' code; a weight whose gradient is 1
    or more does not shrink.)

    Args:
        weights: tensors of weights.
        gradients: the gradients of the loss, one of the same shape for each of `weights`.
        lam: the share λ.

    Example:
        >>> weight = torch.tensor([2.0, 2.0, 2.0])
        >>> sensitivity_decay([weight], [torch.tensor([0.0, -0.5, 3.0])], lam=0.1)
        >>> weight
        tensor([1.8000, 1.9000, 2.0000])
    """
    groups: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
    for weight, gradient in zip(weights, gradients, strict=True):
        dense = gradient if gradient.layout == torch.strided else gradient.to_dense()
        of_weights, of_gradients = groups.setdefault((weight.device, weight.dtype), ([], []))
        of_weights.append(weight)
        of_gradients.append(dense)
    for (device, _), (of_weights, of_gradients) in groups.items():
        if device.type == "cpu":
            _decay_in_pieces(of_weights, of_gradients, lam)
        else:
            _decay(of_weights, of_gradients, lam)


def _decay_in_pieces(weights: list[Tensor], gradients: list[Tensor], lam: float) -> None:
    weight_pieces: list[Tensor] = []
    gradient_pieces: list[Tensor] = []
    numbers = 0
    for weight, gradient in zip(weights, gradients, strict=True):
        if weight.numel() > _PIECE and weight.is_contiguous() and gradient.is_contiguous():
            pieces = zip(weight.view(-1).split(_PIECE), gradient.view(-1).split(_PIECE), strict=True)
        else:
            pieces = zip((weight,), (gradient,), strict=True)
        for weight_piece, gradient_piece in pieces:
            weight_pieces.append(weight_piece)
            gradient_pieces.append(gradient_piece)
            numbers += weight_piece.numel()
            if numbers >= _PIECES_TOGETHER:
                _decay(weight_pieces, gradient_pieces, lam)
                weight_pieces, gradient_pieces, numbers = [], [], 0
    if weight_pieces:
        _decay(weight_pieces, gradient_pieces, lam)


def _decay(weights: list[Tensor], gradients: list[Tensor], lam: float) -> None:
    insensitivity = absolutes(gradients)  # its negative, at first max(0, 1 - |g|) = 1 - min(1, |g|)
    clamp_max_(insensitivity, 1.0)
    subtract_(insensitivity, 1.0)
    add_products_(weights, weights, insensitivity, lam)
