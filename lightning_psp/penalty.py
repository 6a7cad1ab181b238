"""The penalty on potentials as a pure function, and the three reductions that it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_psp.arguments import check_choice

Reduction = Literal["mean", "sum", "squared_mean"]
REDUCTIONS: tuple[str, ...] = get_args(Reduction)


def psp_penalty(potentials: Mapping[str, Tensor], reduction: Reduction = "mean") -> Tensor:
    r"""Post-synaptic potential penalty R of a network, to be multiplied by λ and added to a loss.

    With potentials :math:`z_{l,k}` of unit k in layer l of L layers:

    - ``"mean"``: :math:`\frac1L \sum_l \langle z_l^2 \rangle`, the mean of z² over batch and units, averaged over
      layers (the scale of λ in the experiments of Tartaglione et al., 2019);
    - ``"sum"``: :math:`\frac12 \sum_l \sum_k z_{l,k}^2`, averaged over the batch and over the positions of a filter
      (Tartaglione et al., 2019, Eq. 7);
    - ``"squared_mean"``: :math:`\sum_l \langle (\langle z_{l,k} \rangle_\text{batch})^2 \rangle_k`, the square of the
      mean over the batch, averaged over units.

    Potentials in half precision are accumulated in float32. Where some of the potentials carry a graph, those that do
    not (the layers of a frozen backbone) are constants: they are left out of R and of L.

    Args:
        potentials: layer name to potentials ``[batch, …]``, as :func:`~lightning_psp.record_potentials` gives them.
            In a plain dict of tensors with three or more dimensions, ``"sum"`` takes dimension 1 as the units and the
            dimensions behind it as positions.
        reduction: ``"mean"``, ``"sum"`` or ``"squared_mean"``.

    Returns:
        A scalar with the graph of the potentials attached.

    Raises:
        ValueError: if `reduction` is not one of the three, or there is no potential or an empty one.
        TypeError: if a potential is not a real floating point tensor.

    Example:
        >>> import torch
        >>> potentials = {"hidden": torch.tensor([[1.0, 2.0], [3.0, 0.0]]), "output": torch.tensor([[2.0], [2.0]])}
        >>> psp_penalty(potentials)  # ((1 + 4 + 9 + 0) / 4 + 4) / 2
        tensor(3.7500)
        >>> psp_penalty(potentials, "sum")  # (14 / 2 + 8 / 2) / 2
        tensor(5.5000)
        >>> psp_penalty(potentials, "squared_mean")  # (2² + 1²) / 2 + 2²
        tensor(6.5000)
    """
    terms = list(layer_penalties(potentials, reduction).values())
    return torch.stack([term.to(terms[0].device) for term in terms]).sum()


def layer_penalties(potentials: Mapping[str, Tensor], reduction: Reduction = "mean") -> dict[str, Tensor]:
    """Each layer's own term of R, with the factor that it has there: they add up to :func:`psp_penalty`.

    Args:
        potentials: as for :func:`psp_penalty`.
        reduction: as for :func:`psp_penalty`.

    Returns:
        Layer name to scalar, for the layers that count in R.

    Raises:
        ValueError: as :func:`psp_penalty`.
        TypeError: as :func:`psp_penalty`.

    Example:
        >>> import torch
        >>> potentials = {"hidden": torch.tensor([[1.0, 2.0], [3.0, 0.0]]), "output": torch.tensor([[2.0], [2.0]])}
        >>> layer_penalties(potentials)  # (1 + 4 + 9 + 0) / 4 / 2 and 4 / 2
        {'hidden': tensor(1.7500), 'output': tensor(2.)}
    """
    check_choice("reduction", reduction, REDUCTIONS)
    if not potentials:
        raise ValueError("Expected argument `potentials` to hold at least one layer but got none.")
    unit_dims: Mapping[str, int] = getattr(potentials, "unit_dims", {})
    depends_on_parameters = any(potential.requires_grad for potential in potentials.values())
    terms = {
        layer: _layer_penalty(layer, potential, reduction, unit_dims.get(layer, 1))
        for layer, potential in potentials.items()
        if potential.requires_grad or not depends_on_parameters
    }
    return {layer: term / len(terms) for layer, term in terms.items()} if reduction == "mean" else terms


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which statistics of potentials of this type are summed: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def count_units(potential: Tensor, unit_dim: int) -> int:
    """The number of neurons of a layer, the positions of a filter counting as one; 1 for a vector of outputs."""
    return potential.shape[unit_dim] if potential.ndim > 1 else 1


def _layer_penalty(layer: str, potential: Tensor, reduction: Reduction, unit_dim: int) -> Tensor:
    if not potential.is_floating_point():
        raise TypeError(
            f"Expected the potentials of layer {layer!r} to be real floating point but got {potential.dtype}."
        )
    if potential.numel() == 0:
        raise ValueError(
            f"Expected the potentials of layer {layer!r} to hold values but got shape {[*potential.shape]}."
        )
    accumulated = potential.to(accumulation_dtype(potential.dtype))
    if reduction == "squared_mean":
        return accumulated.mean(dim=0).square().mean()
    if reduction == "mean":
        return accumulated.square().mean()
    return 0.5 * count_units(potential, unit_dim) * accumulated.square().mean()
