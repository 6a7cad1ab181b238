"""Where tensors come from: the module whose output a tensor is, and the network call that made it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from lightning_psp.capture import Potential

# Modules whose units are the last dimension of their output; for all others it is dimension 1.
_FEATURES_LAST = (nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.Embedding)
# Modules that leave the order of dimensions as it was.
_ELEMENTWISE = (nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Identity)


@dataclass
class NetworkCall:
    """One outermost call of a module: within it, a repeated layer name is another layer."""

    repetitions: dict[str, int] = field(default_factory=dict)

    def number(self, name: str) -> str:
        """The name of the next layer that would be called `name`."""
        repetition = self.repetitions.get(name, 0)
        self.repetitions[name] = repetition + 1
        return f"{name}:{repetition}" if repetition else name


class Values:
    """Identity of the values of a tensor, kept by views and casts of it."""

    __slots__ = ("potentials",)

    def __init__(self) -> None:
        self.potentials: list[Potential] = []


class Origin:
    """What is known of one tensor.

    Args:
        tensor: the tensor, held weakly.
    """

    __slots__ = ("call", "path", "potential", "reference", "unit_dim", "values")

    def __init__(self, tensor: Tensor) -> None:
        self.reference = weakref.ref(tensor)
        self.path: str | None = None  # of the innermost module whose output it is
        self.call: NetworkCall | None = None
        self.unit_dim = 1
        self.values = Values()
        self.potential: Potential | None = None  # whose nonlinearity gave this tensor


class Provenance:
    """Origins of the tensors of one forward pass."""

    def __init__(self) -> None:
        """Starts without any tensor."""
        self._origins: dict[int, Origin] = {}

    def find(self, tensor: Any) -> Origin | None:
        """The origin of this tensor, if anything is known of it."""
        origin = self._origins.get(id(tensor))
        # An id is used again once its tensor is gone.
        return origin if origin is not None and origin.reference() is tensor else None

    def of(self, tensor: Tensor) -> Origin:
        """The origin of this tensor, a new one if nothing is known of it."""
        origin = self.find(tensor)
        return self.renew(tensor) if origin is None else origin

    def renew(self, tensor: Tensor) -> Origin:
        """A new origin for a tensor that holds new values."""
        origin = self._origins[id(tensor)] = Origin(tensor)
        return origin

    def record_module(self, module: nn.Module, path: str, call: NetworkCall | None, inputs: Any, output: Any) -> None:
        """Notes that the tensors in `output` are what the module at `path` returned."""
        for tensor in tensors_in(output):
            origin = self.of(tensor)
            if origin.path is not None and is_within(origin.path, path):
                continue  # a module inside this one made it
            origin.path = path
            origin.call = call
            if isinstance(module, _FEATURES_LAST):
                origin.unit_dim = -1
            elif isinstance(module, _ELEMENTWISE) and inputs:
                source = self.find(inputs[0])
                origin.unit_dim = 1 if source is None else source.unit_dim

    def record_view(self, source: Any, result: Any, same_values: bool) -> None:
        """Notes that the tensors in `result` are views, casts or parts of `source`."""
        origin = self.find(source)
        if origin is None:
            return
        for tensor in tensors_in(result):
            if tensor is source:
                continue
            derived = self.renew(tensor)
            derived.path, derived.call, derived.potential = origin.path, origin.call, origin.potential
            if same_values:
                derived.values = origin.values
                derived.unit_dim = origin.unit_dim if tensor.shape == source.shape else 1

    def clear(self) -> None:
        """Forgets every tensor."""
        self._origins.clear()


def is_within(path: str, ancestor: str) -> bool:
    """Whether the module at `path` lies inside the one at `ancestor`."""
    return ancestor == "" or path.startswith(f"{ancestor}.")


def tensors_in(output: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and mappings."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (tuple, list)):
        for item in output:
            yield from tensors_in(item)
    elif isinstance(output, dict):
        for item in output.values():
            yield from tensors_in(item)
