"""What is measured of a network at one point of a plane, in one pass over the data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_psp.analysis.batches import Loss, Survey, device_of, labels_of, moved, samples_in
from lightning_psp.analysis.layer_measures import LayerMeasures
from lightning_psp.functional.precision import widest_float
from lightning_psp.recording.potentials import Potentials, record_potentials

# Orders of the entropies, by what they are called.
ENTROPIES = {"entropy": 1, "entropy2": 2}
MEASURES = ("loss", "error", "z2", *ENTROPIES)


@dataclass
class Point:
    """The measures at one point.

    Args:
        values: measure to its value for the network.
        layers: measure to its values by layer.
    """

    values: dict[str, float] = field(default_factory=dict)
    layers: dict[str, dict[str, float]] = field(default_factory=dict)


class PointMeasures:
    """Measures a network as it is, over and over.

    Args:
        module: the network.
        data: the batches.
        loss: gives the loss of a batch.
        measures: what is measured.
        survey: what is in the data.
    """

    def __init__(
        self,
        module: nn.Module,
        data: Iterable[Any],
        loss: Loss,
        measures: Sequence[str],
        survey: Survey,
    ) -> None:
        self._module = module
        self._data = data
        self._loss = loss
        self._measures = measures
        self._survey = survey
        self._orders = tuple(ENTROPIES[measure] for measure in measures if measure in ENTROPIES)
        self._returned: list[Any] | None = None
        if "error" in measures:
            module.register_forward_hook(self._note_returned)  # taken off where the network is left as it was

    def measure(self) -> Point:
        """One pass over the data."""
        layers = LayerMeasures(self._orders, self._survey.classes)
        device = device_of(self._module)
        totals: dict[str, Tensor | float] = {"loss": 0.0, "error": 0.0}
        samples = 0
        for batch in self._data:
            size = samples_in(batch)
            if size == 0:
                continue
            samples += size
            labels = labels_of(batch) if self._orders else None
            on_device = moved(batch, device)
            returned: list[Any] = []
            self._returned = returned
            recorder = record_potentials(self._module) if self._has_layers else nullcontext(Potentials())
            with recorder as potentials:
                loss = self._loss(self._module, on_device)
            self._returned = None
            _check_value(loss)
            totals["loss"] += size * loss.detach().to(widest_float(loss.device)).squeeze()
            if "error" in self._measures:
                totals["error"] += size * _error(returned, on_device)
            if self._has_layers:
                layers.add(potentials, labels)
                potentials.clear()
        if samples != self._survey.samples:
            raise ValueError(
                "Expected argument `data` to give the same samples in every pass but got"
                f" {self._survey.samples} in one and {samples} in another."
            )
        return self._point({measure: float(total) / samples for measure, total in totals.items()}, layers)

    @property
    def _has_layers(self) -> bool:
        return "z2" in self._measures or bool(self._orders)

    def _note_returned(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._returned is not None:
            self._returned.append(output)

    def _point(self, means: dict[str, float], layers: LayerMeasures) -> Point:
        point = Point()
        for measure in self._measures:
            if measure in means:
                point.values[measure] = means[measure]
                continue
            by_layer = layers.mean_squares() if measure == "z2" else layers.entropies(ENTROPIES[measure])
            if not by_layer:
                raise ValueError(
                    f"Expected argument `module` to have a hidden layer for {measure!r} but got none with enough units."
                    f" Leave {measure!r} out of argument `measures`."
                )
            point.layers[measure] = by_layer
            point.values[measure] = sum(by_layer.values()) / len(by_layer)
        return point


def _check_value(loss: Any) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
        found = f"a tensor {[*loss.shape]} of {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(f"Expected argument `loss` to return a scalar tensor but got {found}.")


def _error(returned: Sequence[Any], batch: Any) -> Tensor:
    """The share of wrong classes among those with the highest scores; scores with NaN are wrong."""
    remedy = 'Leave "error" out of argument `measures`.'
    if len(returned) != 1:
        raise ValueError(
            "Expected argument `loss` to call `module` once, for what it returns are the scores of classes that"
            f' "error" is made of, but got {len(returned)} calls. {remedy}'
        )
    scores, labels = returned[0], labels_of(batch)
    is_fitting = (
        isinstance(scores, Tensor)
        and scores.ndim > 1
        and scores.shape[1] > 1
        and [len(scores), *scores.shape[2:]] == [*labels.shape]
        and not labels.is_floating_point()
    )
    if not is_fitting:
        found = f"a tensor {[*scores.shape]}" if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            "Expected argument `module` to return scores [batch, classes, …] of classes [batch, …] but got"
            f" {found} and a tensor {[*labels.shape]} of {labels.dtype}. {remedy}"
        )
    lowest, highest = torch.stack(labels.aminmax()).tolist() if len(labels) > 0 else (0, 0)
    if lowest < 0 or highest >= scores.shape[1]:
        raise ValueError(
            f'Expected classes from 0 to {scores.shape[1] - 1}, of which "error" is made, but got some from'
            f" {lowest} to {highest}. {remedy}"
        )
    is_wrong = (scores.argmax(1) != labels) | scores.isnan().any(1)
    share: Tensor = is_wrong.to(widest_float(is_wrong.device)).mean()
    return share
