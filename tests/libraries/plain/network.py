"""Rows of networks that are trained with a step in float64, for any library."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from tests.libraries.check import Case, Row
from tests.libraries.taps import Layer, outs

Made = tuple[nn.Module, Callable[[Any], Tensor]]


def network(library: str, name: str, make: Callable[[], Made], layers: Iterable[str | Layer], **further: Any) -> Row:
    """A row of a network and its step; further arguments are those of a `Case`."""
    layers = list(layers)

    def made() -> Case:
        net, step = make()
        expected = [one for entry in layers for one in (outs(entry) if isinstance(entry, str) else [entry])]
        return Case(net.double().train(), step, expected, **further)

    return Row(library, name, made)
