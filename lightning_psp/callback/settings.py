"""What the user asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lightning_psp.callback.targets import Target, check_target, describe, find_target
from lightning_psp.capture.selection import LayerFactors, LayerSelection
from lightning_psp.functional.arguments import check_bool, check_integer, check_number
from lightning_psp.functional.reductions import Reduction
from lightning_psp.functional.validation import Unit
from lightning_psp.gradient.class_states import BatchClasses
from lightning_psp.schedules import make_schedule


@dataclass(frozen=True)
class EntropySettings:
    """What the user asked for.

    Args:
        weight: factor on the mean over layers of their soft entropy.
        temperature: temperature of the graded states.
        target: where the class labels of a batch are.
        num_classes: the number that labels have to stay below, or None.
        unit: what one neuron is, ``"element"`` or ``"channel"``.

    Raises:
        TypeError: if one of them is of the wrong type.
        ValueError: if the weight is not finite, the temperature not finite and above 0, or the number below 1.
    """

    weight: float
    temperature: float
    target: Target
    num_classes: int | None
    unit: Unit = "element"

    def __post_init__(self) -> None:
        """Checks them."""
        check_number("entropy_weight", self.weight)
        check_number("entropy_temperature", self.temperature, above=0)
        if self.num_classes is not None:
            check_integer("num_classes", self.num_classes, at_least=1)
        check_target(self.target)

    def classes(self, batch: Any) -> BatchClasses:
        """The classes of a training batch.

        Raises:
            ValueError: if the batch has no class labels where they are looked for, or one is out of range.
        """
        labels = find_target(batch, self.target)
        if labels is None:
            raise ValueError(
                "PSPCallback(entropy_weight=…) needs the class labels of each training batch, a tensor [batch] of an"
                f" integer type, and found none: the batch is {describe(batch)}. Say with the argument `target` where"
                " they are: an index, a key or a callable that is given the batch."
            )
        present, numbered, counts = torch.unique(labels, return_inverse=True, return_counts=True)
        # Sorted, so that the first is the lowest.
        if len(present) and (present[0] < 0 or (self.num_classes is not None and present[-1] >= self.num_classes)):
            allowed = "of at least 0" if self.num_classes is None else f"from 0 to {self.num_classes - 1}"
            raise ValueError(
                f"PSPCallback(entropy_weight=…) expects class labels {allowed} but the batch has labels from"
                f" {present[0].item()} to {present[-1].item()}."
            )
        return BatchClasses(numbered, counts)


@dataclass(frozen=True)
class Settings:
    """Which layers to watch, and what to add to the loss.

    Args:
        selection: the layers to penalise and to measure.
        reduction: reduction of the penalty.
        layer_factor: gives a layer's factor on λ.
        entropy: settings of the entropy term.
    """

    selection: LayerSelection
    reduction: Reduction
    layer_factor: LayerFactors
    entropy: EntropySettings

    @property
    def has_entropy_term(self) -> bool:
        """Whether there is an entropy term."""
        return self.entropy.weight != 0.0


def changed_argument(name: str, value: Any) -> Any:
    """The value of an argument of the callback that is changed after it was made.

    Args:
        name: the argument.
        value: its new value.

    Returns:
        What the callback keeps of it.

    Raises:
        AttributeError: if the argument is read only when the callback is made.
        TypeError: if the value is of the wrong type.
        ValueError: if it is outside what is allowed.

    Example:
        >>> changed_argument("schedule", "warmup")
        WarmUp(steps=None)
    """
    if name == "schedule":
        return make_schedule(value)
    if name == "histograms":
        check_bool(name, value)
    elif name != "lam":
        raise AttributeError(
            f"PSPCallback reads `{name}` when it is made: make a new one, PSPCallback({name}={value!r}). `lam`,"
            " `schedule` and `histograms` may be changed at any time."
        )
    return value
