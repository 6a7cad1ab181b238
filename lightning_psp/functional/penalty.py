"""The penalty on potentials as a pure function."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_psp.functional.arguments import check_choice
from lightning_psp.functional.precision import accumulation_dtype
from lightning_psp.functional.reductions import REDUCTIONS, RULES, Reduction, Rule


class _Pass(NamedTuple):
    """The potentials of one pass through a part of a layer, and how many they are."""

    z: Tensor
    elements: int
    observations: int
    batch_size: int


def psp_penalty(potentials: Mapping[str, Tensor], reduction: Reduction = "mean") -> Tensor:
    r"""Post-synaptic potential penalty R of a network, to be multiplied by λ and added to a loss.

    With potentials :math:`z_{l,k}` of unit k in layer l of L layers:

    - ``"mean"``: :math:`\frac1L \sum_l \langle z_l^2 \rangle`, the mean of z² over batch and units, averaged over
      layers (the scale of λ in the experiments of Tartaglione et al., 2019);
    - ``"sum"``: :math:`\frac12 \sum_l \sum_k z_{l,k}^2`, averaged over the batch and over the positions of a filter
      (Tartaglione et al., 2019, Eq. 7);
    - ``"squared_mean"``: :math:`\sum_l \langle (\langle z_{l,k} \rangle_\text{batch})^2 \rangle_k`, the square of the
      mean over the batch, averaged over units.

    The passes of a layer count as one batch, its parts as further units. Potentials in half precision are accumulated
    in float32. Where some of the potentials carry a graph, those that do not (the layers of a frozen backbone), or
    whose graph holds no trained parameter, are constants: they are left out of R and of L.

    Args:
        potentials: layer name to potentials ``[batch, …]``, as :func:`~lightning_psp.record_potentials` gives them.
            In a plain dict each entry is a layer; of tensors with three or more dimensions in it, ``"sum"`` takes
            dimension 1 as the units and the dimensions behind it as positions.
        reduction: ``"mean"``, ``"sum"`` or ``"squared_mean"``.

    Returns:
        A scalar with the graph of the potentials attached.

    Raises:
        ValueError: if `reduction` is not one of the three, there is no potential or an empty one, or passes of a layer
            have different shapes, of which ``"squared_mean"`` has no mean.
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
    if not isinstance(potentials, Mapping):
        raise TypeError(
            "Expected argument `potentials` to be a dict of potentials by layer, such as that of"
            f" `with record_potentials(...) as potentials`, but got {_describe(potentials)}."
        )
    if not potentials:
        raise ValueError("Expected argument `potentials` to hold at least one layer but got none.")
    unit_dims: Mapping[str, int] = getattr(potentials, "unit_dims", {})
    parts_of: Mapping[str, tuple[str, int]] = getattr(potentials, "layers", {})
    constants: Collection[str] = getattr(potentials, "constants", ())
    for entry, potential in potentials.items():
        _check_type(entry, potential)
    depends_on_parameters = any(potential.requires_grad for potential in potentials.values())
    layers: dict[str, dict[int, list[_Pass]]] = {}
    for entry, potential in potentials.items():
        if (potential.requires_grad and entry not in constants) or not depends_on_parameters:
            layer, part = parts_of.get(entry, (entry, 0))
            _check(entry, potential)
            observations = potential.numel() // count_units(potential, unit_dims.get(entry, 1))
            found = _Pass(potential, potential.numel(), observations, len(potential) if potential.ndim else 1)
            layers.setdefault(layer, {}).setdefault(part, []).append(found)
    rule = RULES[reduction]
    terms = {layer: _layer_penalty(layer, [*parts.values()], rule) for layer, parts in layers.items()}
    return {layer: term / len(terms) for layer, term in terms.items()} if rule.averages_layers else terms


def count_units(potential: Tensor, unit_dim: int) -> int:
    """The number of neurons of a layer, the positions of a filter counting as one; 1 for a vector of outputs."""
    return potential.shape[unit_dim] if potential.ndim > 1 else 1


def _describe(found: Any) -> str:
    if isinstance(found, AbstractContextManager):
        return "a block that was not entered: take what it gives behind `as`"
    return type(found).__name__


def _check_type(layer: str, potential: Any) -> None:
    if not isinstance(potential, Tensor):
        raise TypeError(f"Expected the potentials of layer {layer!r} to be a tensor but got {_describe(potential)}.")


def _check(layer: str, potential: Tensor) -> None:
    if not potential.is_floating_point():
        raise TypeError(
            f"Expected the potentials of layer {layer!r} to be real floating point but got {potential.dtype}."
        )
    if potential.numel() == 0:
        raise ValueError(
            f"Expected the potentials of layer {layer!r} to hold values but got shape {[*potential.shape]}."
        )


def _layer_penalty(layer: str, parts: list[list[_Pass]], rule: Rule) -> Tensor:
    """The term of a layer from the passes of each of its parts."""
    terms = []
    for passes, divisor in zip(parts, rule.divisors(parts), strict=True):
        squared = [_mean_over_batch(layer, passes)] if rule.squares_means else [each.z for each in passes]
        terms.append(_add_up([_square_sum(tensor) for tensor in squared]) / divisor)
    return _add_up(terms)


def _mean_over_batch(layer: str, passes: list[_Pass]) -> Tensor:
    if any(each.z.shape[1:] != passes[0].z.shape[1:] for each in passes):
        raise ValueError(
            f"The passes of layer {layer!r} have different shapes:"
            f" {', '.join(str([*each.z.shape]) for each in passes)}. Their mean over the batch, which"
            " reduction='squared_mean' needs, is not defined; use reduction='mean'."
        )
    sums = [each.z.sum(dim=0, dtype=accumulation_dtype(each.z.dtype)) for each in passes]
    return torch.stack(sums).sum(dim=0) / sum(each.batch_size for each in passes)


def _square_sum(potential: Tensor) -> Tensor:
    return potential.to(accumulation_dtype(potential.dtype)).square().sum()


def _add_up(terms: list[Tensor]) -> Tensor:
    return terms[0] if len(terms) == 1 else torch.stack([term.to(terms[0].device) for term in terms]).sum()
