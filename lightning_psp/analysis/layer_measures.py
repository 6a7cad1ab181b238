"""⟨z²⟩ and PSP-entropy of the layers of a network over the batches of one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_psp.functional.entropy import Membership, _count_states, class_membership
from lightning_psp.functional.precision import widest_float
from lightning_psp.functional.states import _joint_entropy_update
from lightning_psp.gradient.kernels import square_sum
from lightning_psp.metrics import PSPEntropy
from lightning_psp.recording.potentials import Potentials


class LayerMeasures:
    """⟨z²⟩ of all layers, and the entropies of the hidden ones: what the metrics of this package give.

    The passes of a layer are further observations, its parts further units. A layer with NaN has no entropy.

    Args:
        orders: orders of the entropies.
        classes: the class labels that there are, in ascending order.

    Example:
        >>> from torch import nn
        >>> from lightning_psp import record_potentials
        >>> measures, network = LayerMeasures((1,), torch.tensor([0, 1])), nn.Sequential(nn.Linear(1, 1), nn.Tanh())
        >>> _ = network[0].weight.data.fill_(2.0), network[0].bias.data.fill_(0.0)
        >>> with record_potentials(network) as potentials:
        ...     _ = network(torch.tensor([[1.0], [-1.0], [1.0], [1.0]]))
        >>> measures.add(potentials, torch.tensor([0, 0, 1, 1]))
        >>> measures.mean_squares()
        {'0': 4.0}
    """

    def __init__(self, orders: Sequence[int], classes: Tensor | None) -> None:
        self._orders = tuple(orders)
        self._classes = classes
        self._squares: dict[str, Tensor] = {}
        self._elements: dict[str, int] = {}
        self._hidden: dict[str, int] = {}  # layer to its number of units
        self._metrics: dict[tuple[str, int], PSPEntropy] = {}

    def add(self, potentials: Potentials, labels: Tensor | None) -> None:
        """Adds the potentials of a batch, whose labels are ``[batch]`` where entropies are asked for."""
        layers: dict[str, dict[int, list[str]]] = {}
        for entry, (layer, part) in potentials.layers.items():
            layers.setdefault(layer, {}).setdefault(part, []).append(entry)
            total = square_sum(potentials[entry]).to(widest_float(potentials[entry].device))
            before = self._squares.get(layer)
            self._squares[layer] = total if before is None else before + total.to(before.device)
            self._elements[layer] = self._elements.get(layer, 0) + potentials[entry].numel()
        if labels is None or self._classes is None:
            return
        known = self._classes.to(labels.device)
        ranks = torch.searchsorted(known, labels)
        if len(labels) > 0 and (known[ranks.clamp(max=len(known) - 1)] != labels).any():
            raise ValueError("Expected argument `data` to give the same class labels in every pass but got others.")
        classes = _Classes(ranks)
        for layer, parts in layers.items():
            if not any(entry in potentials.outputs for entries in parts.values() for entry in entries):
                self._add_states(layer, potentials, list(parts.values()), classes)

    def mean_squares(self) -> dict[str, float]:
        """⟨z²⟩ of every layer."""
        return {layer: total.item() / self._elements[layer] for layer, total in self._squares.items()}

    def entropies(self, order: int) -> dict[str, float]:
        """The entropy of every hidden layer with as many units."""
        return {
            layer: math.nan if self._squares[layer].isnan() else self._metrics[layer, order].compute().item()
            for layer, units in self._hidden.items()
            if units >= order
        }

    def _add_states(self, layer: str, potentials: Potentials, parts: list[list[str]], classes: _Classes) -> None:
        for entry in (entry for entries in parts for entry in entries):
            if len(potentials[entry]) != potentials.passes[entry] * len(classes):
                raise ValueError(
                    f"The potentials {[*potentials[entry].shape]} of layer {layer!r} do not go with {len(classes)}"
                    f" class labels. {_REMEDY}"
                )
        if len({tuple(potentials.passes[entry] for entry in entries) for entries in parts}) > 1:
            raise ValueError(f"The parts of layer {layer!r} were not evaluated equally often. {_REMEDY}")
        for together in zip(*parts, strict=True):
            rows = [potentials[entry].reshape(len(potentials[entry]), -1) for entry in together]
            z = rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
            units = self._hidden.setdefault(layer, z.shape[1])
            if z.shape[1] != units:
                raise ValueError(
                    f"Layer {layer!r} has {units} units in one pass and {z.shape[1]} in another. {_REMEDY}"
                )
            target, membership = classes.of(potentials.passes[together[0]], z.device)
            for order in self._orders:
                # A NaN, which a metric would refuse, has no state, but the layer's sum of squares keeps it.
                if order == 1 <= units:
                    self._metric(layer, 1, z.device).add_counts(units, _count_states(z, membership))
                elif order <= units:
                    self._metric(layer, order, z.device).add_states(units, *_joint_entropy_update(z, target))

    def _metric(self, layer: str, order: int, device: torch.device) -> PSPEntropy:
        if (layer, order) not in self._metrics:
            assert self._classes is not None
            # Each process has points of its own, of which it sees all samples.
            self._metrics[layer, order] = PSPEntropy(len(self._classes), order, sync_on_compute=False).to(device)
        return self._metrics[layer, order]


class _Classes:
    """The classes of the samples of a batch, wherever they are asked for.

    Args:
        ranks: the classes, as numbers from 0 on, ``[batch]``.
    """

    def __init__(self, ranks: Tensor) -> None:
        self._ranks = ranks
        self._found: dict[tuple[int, torch.device], tuple[Tensor, Membership]] = {}

    def __len__(self) -> int:
        return len(self._ranks)

    def of(self, passes: int, device: torch.device) -> tuple[Tensor, Membership]:
        """The classes of some passes over the batch, and which of them each sample belongs to, on a device."""
        if (passes, device) not in self._found:
            target = self._ranks.repeat(passes)
            # Looked up where the labels are: on an accelerator, that would wait for it.
            membership = Membership(*(each.to(device) for each in class_membership(target)))
            self._found[passes, device] = target.to(device), membership
        return self._found[passes, device]


_REMEDY = "Leave the entropies out of argument `measures`."
