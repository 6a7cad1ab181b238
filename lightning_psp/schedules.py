"""λ over training: factors between the λ that the user gives and the one that a step uses."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from lightning_psp.functional.arguments import check_choice, check_integer, check_number


@dataclass(frozen=True)
class TrainingProgress:
    """Where a training stands.

    Args:
        step: optimiser steps taken so far.
        fraction: share of the training that is done, from 0 to 1; None where its end is not known.
        learning_rate: learning rate of the first parameter group of the first optimiser.
        first_learning_rate: the same at the start of training.
    """

    step: int
    fraction: float | None
    learning_rate: float
    first_learning_rate: float


class Schedule(ABC):
    """A factor on λ that depends on the progress of training."""

    @abstractmethod
    def factor(self, progress: TrainingProgress) -> float:
        """The factor on λ in the step that follows."""


@dataclass(frozen=True)
class Constant(Schedule):
    """λ stays as it is: the setting of the first paper's experiments.

    Example:
        >>> Constant().factor(TrainingProgress(10, 0.5, 0.1, 0.1))
        1.0
    """

    def factor(self, progress: TrainingProgress) -> float:
        """The factor on λ in the step that follows."""
        return 1.0


@dataclass(frozen=True)
class WarmUp(Schedule):
    """λ rises linearly from 0 to its full value, then stays.

    Args:
        steps: optimiser steps until the full value; by default a tenth of the training.

    Raises:
        TypeError: if `steps` is no integer.
        ValueError: if `steps` is below 1; in training, if they are not given and its end is not known.

    Example:
        >>> WarmUp(steps=100).factor(TrainingProgress(25, 0.5, 0.1, 0.1))
        0.25
    """

    steps: int | None = None

    def __post_init__(self) -> None:
        """Checks the number of steps."""
        if self.steps is not None:
            check_integer("steps", self.steps, at_least=1)

    def factor(self, progress: TrainingProgress) -> float:
        """The factor on λ in the step that follows."""
        if self.steps is not None:
            return min(1.0, progress.step / self.steps)
        return min(1.0, 10.0 * _fraction(progress, "WarmUp without `steps`"))


@dataclass(frozen=True)
class Linear(Schedule):
    """λ goes in a straight line from its full value to `end` times that value.

    Args:
        end: factor at the end of training, 0 or more.

    Raises:
        TypeError: if `end` is no number.
        ValueError: if `end` is below 0 or not finite; in training, if its end is not known.

    Example:
        >>> Linear(end=0.0).factor(TrainingProgress(10, 0.25, 0.1, 0.1))
        0.75
    """

    end: float = 0.0

    def __post_init__(self) -> None:
        """Checks the end value."""
        check_number("end", self.end, at_least=0)

    def factor(self, progress: TrainingProgress) -> float:
        """The factor on λ in the step that follows."""
        return 1.0 + (self.end - 1.0) * _fraction(progress, "Linear")


@dataclass(frozen=True)
class Cosine(Schedule):
    """λ goes along half a cosine from its full value to `end` times that value.

    Args:
        end: factor at the end of training, 0 or more.

    Raises:
        TypeError: if `end` is no number.
        ValueError: if `end` is below 0 or not finite; in training, if its end is not known.

    Example:
        >>> Cosine().factor(TrainingProgress(0, 0.0, 0.1, 0.1))
        1.0
    """

    end: float = 0.0

    def __post_init__(self) -> None:
        """Checks the end value."""
        check_number("end", self.end, at_least=0)

    def factor(self, progress: TrainingProgress) -> float:
        """The factor on λ in the step that follows."""
        weight = 0.5 * (1.0 + math.cos(math.pi * _fraction(progress, "Cosine")))
        return self.end + (1.0 - self.end) * weight


@dataclass(frozen=True)
class ProportionalToLearningRate(Schedule):
    """λ follows the learning rate of the first optimiser's first parameter group.

    Args:
        reference: learning rate at which λ has its full value; by default the learning rate at the
            start of training (the `initial_lr` that a scheduler notes in the parameter group, where
            there is one).

    Raises:
        TypeError: if `reference` is no number.
        ValueError: if `reference` is not a finite number above 0; in training, if it is not given and the learning rate
            is 0 at the start.

    Example:
        >>> ProportionalToLearningRate().factor(TrainingProgress(10, 0.5, 0.05, 0.1))
        0.5
    """

    reference: float | None = None

    def __post_init__(self) -> None:
        """Checks the reference."""
        if self.reference is not None:
            check_number("reference", self.reference, above=0)

    def factor(self, progress: TrainingProgress) -> float:
        """The factor on λ in the step that follows."""
        reference = progress.first_learning_rate if self.reference is None else self.reference
        if reference == 0:
            raise ValueError(
                "The learning rate is 0 at the start of training: give `ProportionalToLearningRate` a `reference`,"
                " the learning rate at which λ has its full value."
            )
        return progress.learning_rate / reference


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "warmup": WarmUp,
    "linear": Linear,
    "cosine": Cosine,
    "learning_rate": ProportionalToLearningRate,
}


def make_schedule(schedule: Schedule | str | None) -> Schedule:
    """The schedule that the argument `schedule` of a callback stands for.

    Args:
        schedule: a schedule, the name of one, or None for a constant λ.

    Raises:
        ValueError: if the name is not known.
        TypeError: if it is none of these.
    """
    if schedule is None:
        return Constant()
    if isinstance(schedule, Schedule):
        return schedule
    if isinstance(schedule, str):
        check_choice("schedule", schedule, SCHEDULES)
        return SCHEDULES[schedule]()
    raise TypeError(
        "Expected argument `schedule` to be a `Schedule`, such as `WarmUp(steps=100)`, the name of one, or None but got"
        f" {schedule!r}."
    )


def _fraction(progress: TrainingProgress, schedule: str) -> float:
    if progress.fraction is None:
        raise ValueError(
            f"The schedule {schedule} needs to know where training ends: set `max_epochs` (with a sized data loader)"
            " or `max_steps` in the Trainer."
        )
    return progress.fraction
