"""The loss, and what else is measured, in the plane through two solutions of a network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from lightning_psp.analysis.batches import Loss, check_loss, cross_entropy, survey
from lightning_psp.analysis.identity import digest, identity_of, identity_of_network
from lightning_psp.analysis.point import ENTROPIES, MEASURES, Point, PointMeasures
from lightning_psp.analysis.points import measured_points
from lightning_psp.analysis.processes import refuse_shared
from lightning_psp.analysis.results import Result
from lightning_psp.analysis.solutions import Direction, weight_plane
from lightning_psp.analysis.statistics import reestimate_statistics
from lightning_psp.analysis.unchanged import Unchanged, seed_everything
from lightning_psp.functional.arguments import check_bool, check_choice, check_data, check_integer, check_number
from lightning_psp.recording.potentials import check_module

BatchNorm: TypeAlias = Literal["keep", "reestimate"]

# A coordinate that differs less from 0 or 1 is meant to be that.
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False, repr=False)  # tensors have no single truth value
class LossPlane(Result):
    """What was measured in a plane of weights.

    Given by :func:`loss_plane`, which says what the numbers are.

    Args:
        x: ``[X]`` float64, in ascending order: the place along ``second - first``, 0 at the first solution and 1 at the
            second.
        y: ``[Y]`` float64, in ascending order: the place along the second direction; 0 alone for a line.
        values: measure to ``[Y, X]`` float64.
        layers: measure to layer name to ``[Y, X]`` float64; empty unless layers were asked for.
    """

    x: Tensor
    y: Tensor
    values: dict[str, Tensor]
    layers: dict[str, dict[str, Tensor]]


def loss_plane(
    module: nn.Module,
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    data: Iterable[Any],
    *,
    loss: Loss | None = None,
    measures: Sequence[str] = ("loss", "error", "z2", "entropy"),
    size: tuple[int, int] = (25, 25),
    margin: float = 0.25,
    direction: Direction = "orthogonal",
    seed: int = 0,
    batch_norm: BatchNorm = "keep",
    by_layer: bool = False,
    masks: Mapping[str, Tensor] | None = None,
    path: str | Path | None = None,
) -> LossPlane:
    r"""Loss, error, ⟨z²⟩ and PSP-entropy in the plane through two solutions of a network.

    The network with weights

    .. math:: \theta(x, y) = \theta_1 + x \, (\theta_2 - \theta_1) + y \, d

    is measured on a grid of points (Tartaglione et al., 2020, Fig. 2 to 4, draw such maps), x from -`margin` to
    1 + `margin` and y from -(½ + `margin`) to ½ + `margin`. At x = 0 and x = 1 with y = 0 its weights are those of the
    two solutions to the digit; odd sizes have such points where `margin` allows it, as 0.25 does with 25 points. The
    direction d is drawn from a normal distribution and

    - ``"orthogonal"``: made orthogonal to θ₂ - θ₁ and as long;
    - ``"filter"``: made orthogonal to it within each filter, a row of a weight of two or more dimensions, and scaled to
      the length of this filter in θ₁ (Li et al., 2018, Section 4). Biases and the weights of norms are not moved.

    Weights are the parameters of `module`, frozen ones included; one that it knows by several names is a single one.

    Measures, each in one pass over the data, with the network in ``eval()``:

    - ``"loss"``: the mean over samples of the loss;
    - ``"error"``: the share of samples whose class has not the highest score, with the scores ``[batch, classes, …]``
      that `module` returns where the loss calls it, and classes ``batch[1]``. Scores with NaN are wrong;
    - ``"z2"``: ⟨z²⟩, the mean over layers of :class:`~lightning_psp.metrics.MeanSquarePotential`;
    - ``"entropy"``, ``"entropy2"``: the mean over hidden layers of :class:`~lightning_psp.metrics.PSPEntropy` of first
      and of second order, with the classes ``batch[1]``. NaN where a potential is.

    Batch norms with ``batch_norm="keep"`` have running statistics on the line between those of the two solutions, at
    every y; before x = 0 and beyond x = 1 they are those of the nearer solution, for a variance on that line could be
    negative. So are all other buffers of floating point; integers, and what is infinite in a solution, are always those
    of the nearer one.
    With ``"reestimate"`` the statistics at each point are the mean over batches of the statistics of these, weighted by
    samples, which takes another pass. It is what to choose for networks with batch norm: away from the solutions kept
    statistics are not those of the weights, and then the map shows that rather than the loss.

    The network's weights, buffers, modes and gradients are left as they were, and so is the state of random number
    generators, after an error or Ctrl-C, too. At each point random numbers start at `seed`, so that a loader that
    shuffles gives the same batches.

    With `path`, a point that is finished is kept in that file, and a call with the same arguments goes on from there.
    Of the network what it is printed as is compared, of the data the first batch and the number of samples, of a loss
    its name, its code and the functions, plain values and tensors that this uses, but not what an object holds.
    Where torch.distributed is initialised, all processes have to call this with the same arguments and all of the data;
    they share the points, and each returns the whole plane.

    Args:
        module: the network.
        first: state dict of the solution at x = 0.
        second: state dict of the solution at x = 1.
        data: batches, tuples or lists ``(input, classes, …)`` unless `loss` and `measures` take others. They are moved
            to the network's device.
        loss: gives the loss of a batch, a scalar that is the mean over its samples, from the network and the batch. By
            default ``cross_entropy(module(batch[0]), batch[1])``.
        measures: any of ``"loss"``, ``"error"``, ``"z2"``, ``"entropy"`` and ``"entropy2"``.
        size: the number of points along x, 2 or more, and along y. A single one along y is the line y = 0.
        margin: how far the plane goes beyond the solutions, in lengths of ``second - first``.
        direction: ``"orthogonal"`` or ``"filter"``.
        seed: seed of the direction, and of random numbers at each point.
        batch_norm: ``"keep"`` or ``"reestimate"``.
        by_layer: whether ⟨z²⟩ and entropies of each layer are given, too.
        masks: name of a parameter to a bool tensor of its shape, True where the direction d may move it, such as the
            weights that pruning has left; a parameter without mask is moved as a whole. The first direction is
            ``second - first`` with all weights.
        path: the file of finished points.

    Returns:
        The grid, and a value a point for each measure; NaN in a layer's values where it was not called.

    Raises:
        TypeError: if an argument is of another type, data can be iterated only once, or `loss` returns no scalar.
        ValueError: if a state dict or mask does not go with the network, the solutions are the same, a measure cannot
            be had, or `path` belongs to another computation.

    Example:
        >>> from torch import nn
        >>> network = nn.Linear(1, 2, bias=False)
        >>> first, second = ({"weight": torch.tensor([[w], [0.0]])} for w in (1.0, 3.0))
        >>> data = [(torch.ones(1, 1), torch.tensor([1]))]
        >>> plane = loss_plane(
        ...     network, first, second, data, measures=("loss", "error"), size=(4, 1), margin=1.0
        ... )
        >>> plane.x
        tensor([-1.,  0.,  1.,  2.], dtype=torch.float64)
        >>> plane.values["loss"]  # log(1 + exp(w)) for w = -1, 1, 3, 5
        tensor([[0.3133, 1.3133, 3.0486, 5.0067]], dtype=torch.float64)
        >>> plane.values["error"]
        tensor([[0., 1., 1., 1.]], dtype=torch.float64)
    """
    check_module(module)
    check_data(data)
    _check_arguments(measures, size, margin, direction, seed, batch_norm, by_layer)
    if loss is not None:
        check_loss(loss)
    estimates_statistics = batch_norm == "reestimate"
    refuse_shared(module, estimates_statistics)
    weights = weight_plane(module, first, second, masks, direction, seed, is_line=size[1] == 1)
    margin = float(margin)  # of which the coordinates are made
    x = _grid(-margin, 1 + margin, size[0])
    y = _grid(-0.5 - margin, 0.5 + margin, size[1]) if size[1] > 1 else [0.0]
    batch_loss = cross_entropy if loss is None else loss
    unchanged = Unchanged(module, data)
    with unchanged, unchanged:
        torch.set_grad_enabled(False)
        module.eval()
        seed_everything(data, seed)
        found = survey(data, any(measure in ENTROPIES for measure in measures))
        run = {
            "module": identity_of_network(module, (each.tensor for each in weights.ends)),
            "first": digest(each.first for each in weights.ends),
            "second": digest(each.second for each in weights.ends),
            "data": [found.samples, digest(found.first_tensors)],
            "loss": identity_of(batch_loss),
            "measures": list(measures),
            "size": list(size),
            "margin": margin,
            "direction": direction,
            "seed": seed,
            "batch_norm": batch_norm,
            "by_layer": by_layer,
            "masks": None if masks is None else [*masks, digest(masks.values())],
        }
        point_measures = PointMeasures(module, data, batch_loss, measures, found)

        def measure(number: int) -> Point:
            weights.put(x[number % len(x)], y[number // len(x)])
            seed_everything(data, seed)
            if estimates_statistics:
                reestimate_statistics(module, data, batch_loss)
                seed_everything(data, seed)
            point = point_measures.measure()
            return point if by_layer else Point(point.values)

        points = measured_points(len(x) * len(y), measure, run, path)
    return _plane(x, y, points)


def _check_arguments(
    measures: Any, size: Any, margin: Any, direction: Any, seed: Any, batch_norm: Any, by_layer: Any
) -> None:
    if isinstance(measures, str) or not isinstance(measures, Sequence) or not measures:
        raise TypeError(f"Expected argument `measures` to be a sequence of {', '.join(MEASURES)} but got {measures!r}.")
    for measure in measures:
        check_choice("measures", measure, MEASURES)
    if len(set(measures)) < len(measures):
        raise ValueError(f"Expected argument `measures` to name each measure once but got {measures!r}.")
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise TypeError(f"Expected argument `size` to be the numbers of points along x and y but got {size!r}.")
    for place, number in enumerate(size):
        check_integer(f"size[{place}]", number, at_least=2 - place)
    check_number("margin", margin, at_least=0)
    check_choice("direction", direction, get_args(Direction))
    check_integer("seed", seed, at_least=0)
    check_choice("batch_norm", batch_norm, get_args(BatchNorm))
    check_bool("by_layer", by_layer)


def _grid(low: float, high: float, points: int) -> list[float]:
    """Evenly spaced coordinates; 0 and 1 are exact where they are among them."""
    spaced = (low + (high - low) * number / (points - 1) for number in range(points))
    return [float(round(each)) if abs(each - round(each)) < _ROUNDING else each for each in spaced]


def _plane(x: Sequence[float], y: Sequence[float], points: Sequence[Point]) -> LossPlane:
    def grid(values: Iterable[float]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.float64, device="cpu").view(len(y), len(x))

    layers: dict[str, dict[str, None]] = {}
    for point in points:
        for measure, by_layer in point.layers.items():
            layers.setdefault(measure, {}).update(dict.fromkeys(by_layer))
    return LossPlane(
        x=torch.tensor(x, dtype=torch.float64, device="cpu"),
        y=torch.tensor(y, dtype=torch.float64, device="cpu"),
        values={measure: grid(point.values[measure] for point in points) for measure in points[0].values},
        layers={
            measure: {layer: grid(point.layers[measure].get(layer, math.nan) for point in points) for layer in names}
            for measure, names in layers.items()
        },
    )
