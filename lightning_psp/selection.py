"""Choosing layers by patterns on their names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache

from lightning_psp.arguments import check_bool


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
        return matches(layer, tuple(self.include)) and not matches(layer, tuple(self.exclude))

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


@cache
def matches(layer: str, patterns: tuple[str, ...]) -> bool:
    """Whether one of the glob patterns matches the name of a layer."""
    return any(fnmatchcase(layer, pattern) for pattern in patterns)
