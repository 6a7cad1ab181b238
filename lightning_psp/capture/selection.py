"""Choosing layers by patterns on their names."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache

from lightning_psp.functional.arguments import check_bool, check_number


@dataclass(frozen=True)
class LayerSelection:
    """The layers that match one of the `include` patterns and none of the `exclude` patterns.

    Args:
        include: glob patterns on layer names.
        exclude: glob patterns on layer names.
        output: whether the output layer (the logits) belongs to the selection.

    Raises:
        TypeError: if `include` or `exclude` is not a sequence of strings, or `output` not a bool.
        ValueError: if `include` is empty.

    Example:
        >>> selection = LayerSelection(include=("conv*", "fc*"), exclude=("fc2",))
        >>> [name for name in ("conv1", "fc1", "fc2", "norm") if selection.selects(name)]
        ['conv1', 'fc1']
    """

    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()
    output: bool = True

    def __post_init__(self) -> None:
        """Checks the patterns."""
        for argument in ("include", "exclude"):
            patterns = getattr(self, argument)
            if (
                isinstance(patterns, str)
                or not isinstance(patterns, Sequence)
                or not all(isinstance(pattern, str) for pattern in patterns)
            ):
                raise TypeError(
                    f"Expected argument `{argument}` to be a sequence of glob patterns, such as ('conv*',),"
                    f" but got {patterns!r}."
                )
            object.__setattr__(self, argument, tuple(patterns))
        if not self.include:
            raise ValueError("Expected argument `include` to hold at least one glob pattern but got none.")
        check_bool("output", self.output)

    def selects(self, layer: str, is_output: bool = False) -> bool:
        """Whether the layer of this name is chosen."""
        if is_output and not self.output:
            return False
        is_excluded = bool(self.exclude) and matches(layer, tuple(self.exclude))
        return not is_excluded and matches(layer, tuple(self.include))

    def check(self, layers: Collection[str], further_patterns: Iterable[str] = ()) -> None:
        """Raises an error that lists `layers` if a pattern matches none of them, or if none is there.

        Args:
            layers: names of all layers that were found.
            further_patterns: the patterns of the argument `layer_lam`.

        Raises:
            ValueError: if no layer was found, or a pattern matches none.
        """
        if not layers:
            raise ValueError(
                "No potential was found: the model was not called, or it calls no nonlinearity that is known here. Name"
                " the module classes or torch functions that are nonlinearities of this model in the argument"
                " `activations`."
            )
        named = {"include": self.include, "exclude": self.exclude, "layer_lam": tuple(further_patterns)}
        for argument, patterns in named.items():
            for pattern in patterns:
                if not any(fnmatchcase(layer, pattern) for layer in layers):
                    raise ValueError(
                        f"Pattern {pattern!r} of argument `{argument}` matches no layer. The layers of this model"
                        f" are: {', '.join(layers)}."
                    )

    def check_chosen(self, layers: Collection[str], chosen: Iterable[str]) -> None:
        """Raises an error that lists `layers` if the selection leaves all of them out.

        Args:
            layers: names of all layers that were found.
            chosen: the layers that were chosen, and those of which it cannot be told.

        Raises:
            ValueError: if none of `chosen` is selected by its name.
        """
        if not any(self.selects(layer) for layer in chosen):
            raise ValueError(
                f"No layer is left to penalise or to watch by include={self.include}, exclude={self.exclude},"
                f" output={self.output}. The layers of this model are: {', '.join(layers)}."
                + ("" if self.output else " Without output=False, the output layer is one to choose from.")
            )


@dataclass(frozen=True)
class LayerFactors:
    """Factors on λ for the layers that match a pattern; those of several matching patterns multiply.

    Args:
        by_pattern: glob pattern on layer names to factor, 0 or more.

    Raises:
        TypeError: if `by_pattern` is no mapping from strings to numbers.
        ValueError: if a factor is negative.

    Example:
        >>> factor = LayerFactors({"conv*": 0.5, "*1": 0.1})
        >>> factor("conv1"), factor("conv2"), factor("fc")
        (0.05, 0.5, 1.0)
    """

    by_pattern: Mapping[str, float]

    def __post_init__(self) -> None:
        """Checks the factors."""
        if not isinstance(self.by_pattern, Mapping):
            raise TypeError(
                f"Expected argument `layer_lam` to map glob patterns to factors but got {self.by_pattern!r}."
            )
        for pattern, factor in self.by_pattern.items():
            if not isinstance(pattern, str):
                raise TypeError(f"Expected argument `layer_lam` to have glob patterns as keys but got {pattern!r}.")
            check_number(f"layer_lam[{pattern!r}]", factor, at_least=0)
        object.__setattr__(self, "by_pattern", dict(self.by_pattern))

    def __call__(self, layer: str) -> float:
        """The factor for the layer of this name."""
        if not self.by_pattern:
            return 1.0
        return math.prod((f for pattern, f in self.by_pattern.items() if matches(layer, (pattern,))), start=1.0)


@cache
def matches(layer: str, patterns: tuple[str, ...]) -> bool:
    """Whether one of the glob patterns matches the name of a layer."""
    return any(fnmatchcase(layer, pattern) for pattern in patterns)
