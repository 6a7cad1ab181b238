"""The layers of a network as a table."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_psp.analysis.unchanged import Unchanged
from lightning_psp.capture.selection import LayerSelection
from lightning_psp.functional.mean_square import _mean_square_update
from lightning_psp.recording.potentials import Potentials, check_module, recording
from lightning_psp.torch_private.tensors import map_tensors

_HEADER = ("layer", "enters", "shape", "kind", "⟨z²⟩", "never on", "penalised")
_NUMBERS = (4, 5)  # columns that are aligned to the right


@dataclass(frozen=True)
class SummarisedLayer:
    """A layer in the table of :func:`layer_summary`.

    Args:
        name: its name.
        nonlinearity: what its potentials enter; several names where its parts enter several nonlinearities.
        shape: shape of its potentials ``[batch, …]``, of the first where passes or parts have several.
        kind: ``"hidden"`` or ``"output"``.
        mean_square: ⟨z²⟩, the mean of z² over batch, units and positions.
        never_on: share of the units, the entries of ``z[b]``, whose potential is above 0 for no sample.
        is_penalised: whether a gradient reaches trained weights behind it; a frozen layer is left out of the penalty.
    """

    name: str
    nonlinearity: str
    shape: tuple[int, ...]
    kind: Literal["hidden", "output"]
    mean_square: float
    never_on: float
    is_penalised: bool

    def cells(self) -> tuple[str, ...]:
        """What stands in its row."""
        numbers = f"{self.mean_square:.4g}", f"{100 * self.never_on:.1f} %"
        penalised = "yes" if self.is_penalised else "no"
        return self.name, self.nonlinearity, str([*self.shape]), self.kind, *numbers, penalised


@dataclass(frozen=True)
class LayerSummary:
    """The layers that a penalty would act on, in order of call: a table to print, and to iterate over.

    Given by :func:`~lightning_psp.layer_summary`.

    Args:
        layers: the layers.
        unseen: what could not be seen of the network, with the remedy; empty where that is nothing.
    """

    layers: tuple[SummarisedLayer, ...]
    unseen: str

    @property
    def mean_square(self) -> float:
        """⟨z²⟩ of the network: the mean over its layers."""
        return sum(layer.mean_square for layer in self.layers) / len(self.layers)

    def __iter__(self) -> Iterator[SummarisedLayer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __str__(self) -> str:
        rows = [_HEADER, *(layer.cells() for layer in self.layers)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(_padded, range(len(row)), row, widths)).rstrip() for row in rows]
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:], rule, self._foot(), *filter(None, [self.unseen])])

    def _repr_html_(self) -> str:
        """The table in a notebook."""
        head = "".join(f"<th>{cell}</th>" for cell in _HEADER)
        rows = ["".join(f"<td>{html.escape(cell)}</td>" for cell in layer.cells()) for layer in self.layers]
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        foot = "".join(f"<p>{html.escape(text)}</p>" for text in (self._foot(), self.unseen) if text)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{foot}"

    def _foot(self) -> str:
        number = "1 layer" if len(self) == 1 else f"{len(self)} layers"
        return f"{number}, ⟨z²⟩ of the network {self.mean_square:.4g}"


def layer_summary(
    module: nn.Module,
    *inputs: Any,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    output: bool = True,
    activations: Sequence[str | type[nn.Module] | Callable[..., object]] = (),
) -> LayerSummary:
    """Shows which layers of a network would be penalised, and how large their potentials are.

    The network is called once, as ``module(*inputs)``, in the mode that it is in. Weights, buffers, modes and the state
    of the random number generators are left as they were. Without a loss, the output layers are what the network
    returns (:func:`~lightning_psp.record_potentials`).

    Args:
        module: the network. Layers are named relative to it.
        inputs: what it is called with: a batch, on its device.
        include: glob patterns on layer names.
        exclude: glob patterns on layer names.
        output: whether output layers are among the layers.
        activations: further module classes or torch functions whose input is a potential, or their dotted names.

    Returns:
        The layers in order of call, each with its name, what it enters, shape, kind, ⟨z²⟩, share of units that are
        never on, and whether it is penalised; and what could not be seen. ``print`` and notebooks show a table.

    Raises:
        TypeError: if `module` is no module.
        ValueError: as :func:`~lightning_psp.record_potentials`.

    Example:
        >>> network = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> for parameter, value in zip(network.parameters(), (1.0, -1.0, 1.0, 0.5)):
        ...     _ = nn.init.constant_(parameter, value)
        >>> print(layer_summary(network, torch.tensor([[1.0], [3.0]])))  # z of "0": 0 and 2, of "2": 0.5 and 4.5
        layer  enters  shape   kind     ⟨z²⟩  never on  penalised
        ---------------------------------------------------------
        0      relu    [2, 2]  hidden      2     0.0 %  yes
        2      output  [2, 1]  output  10.25     0.0 %  yes
        ---------------------------------------------------------
        2 layers, ⟨z²⟩ of the network 6.125
    """
    check_module(module)
    selection, unchanged = LayerSelection(include, exclude, output), Unchanged(module)
    unseen: list[str] = []
    # In inference mode nothing asks for a gradient, and what was made in it, such as a whole network, is in no graph.
    cannot_train = any(tensor.is_inference() for tensor in (*module.parameters(), *module.buffers()))
    # With gradient enabled, an output is what has one: not that of a network which is frozen as a whole.
    is_trained = not cannot_train and any(parameter.requires_grad for parameter in module.parameters())
    with unchanged, unchanged, torch.inference_mode(cannot_train), torch.set_grad_enabled(is_trained):
        arguments = map_tensors(lambda tensor: tensor.clone() if tensor.is_inference() else tensor, inputs)
        with recording(module, selection, activations, unseen.append) as potentials:
            _call(module, arguments)
        layers: dict[str, list[str]] = {}
        for entry, (layer, _) in potentials.layers.items():
            layers.setdefault(layer, []).append(entry)
        rows = tuple(_summarised(layer, entries, potentials) for layer, entries in layers.items())
        potentials.clear()
    return LayerSummary(rows, "".join(unseen))


@torch.no_grad()
def _summarised(layer: str, entries: list[str], potentials: Potentials) -> SummarisedLayer:
    tensors = [potentials[entry] for entry in entries]
    sums = [_mean_square_update(z) for z in tensors]
    are_on = [(z > 0).any(dim=0).flatten() for z in tensors]
    is_output = entries[0] in potentials.outputs
    return SummarisedLayer(
        name=layer,
        nonlinearity=", ".join(dict.fromkeys(potentials.nonlinearities[entry] for entry in entries)),
        shape=tuple(tensors[0].shape),
        kind="output" if is_output else "hidden",
        mean_square=sum(float(total) for total, _ in sums) / sum(number for _, number in sums),
        never_on=1 - sum(int(on.sum()) for on in are_on) / sum(on.numel() for on in are_on),
        is_penalised=any(z.requires_grad for z in tensors),
    )


def _call(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    try:
        module(*inputs)
    except (TypeError, AttributeError) as error:
        (given, *others) = inputs or (None,)
        if others or not isinstance(given, (tuple, list, DataLoader)):
            raise
        raise TypeError(
            f"The network was called with one argument, a {type(given).__name__}, and failed. Of a batch of inputs and"
            " labels give the inputs alone, such as `batch[0]`, and several inputs one by one."
        ) from error


def _padded(column: int, cell: str, width: int) -> str:
    return cell.rjust(width) if column in _NUMBERS else cell.ljust(width)
