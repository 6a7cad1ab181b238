"""Means of potentials over the batch, of which each of several processes sees a part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_psp.gradient.compiled_tap import AnyTap, CompiledTap

Part: TypeAlias = tuple[str, int]  # the layer's name, and which of its parts


class BatchMean(NamedTuple):
    """The mean over the batch of the potentials of a part of a layer.

    Args:
        values: the mean of each unit ``[units…]``, in all processes the same.
        batch_size: the number of samples behind it, for each process: that of all processes over their number.
    """

    values: Tensor
    batch_size: float


class BatchMeans:
    """Takes the means over the batch in every backward pass; of several processes all have to.

    Processes add up their sums over the batch in one reduction of one vector, whose layout all of them know: the parts
    of layers and their shapes. A process that has another part raises a flag in the vector. Then all tell each other
    what they have, agree on a layout with everything in it, and reduce once more.

    Args:
        processes: the number of processes among which a batch is shared out.
        device: the device of this process, on which it reduces.
    """

    def __init__(self, processes: int, device: torch.device) -> None:
        self._processes = processes
        self._device = device
        self._layout: dict[Part, torch.Size] = {}
        self._dtype = torch.float32

    def take(self, layers: Mapping[str, list[AnyTap]]) -> dict[Part, BatchMean]:
        """The means of each part of these layers.

        Args:
            layers: the passes of each layer.

        Raises:
            ValueError: if passes of a layer differ in shape, in this process or among processes.
            NotImplementedError: if a layer runs in a compiled function, which has its own mean of one pass only.
        """
        passes: dict[Part, list[AnyTap]] = {}
        for layer, taps in layers.items():
            for tap in taps:
                passes.setdefault((layer, tap.potential.part), []).append(tap)
        sums = {part: _sum_over_batch(taps, self._processes) for part, taps in passes.items()}
        sizes = {part: sum(tap.batch_size for tap in taps) for part, taps in passes.items()}
        if self._processes == 1:
            return {part: BatchMean(total / sizes[part], sizes[part]) for part, total in sums.items()}
        totals = self._add_up(sums, sizes)
        while totals is None:
            self._agree(sums)
            totals = self._add_up(sums, sizes)
        return {
            part: BatchMean((totals[part][0] / totals[part][1]).to(own), totals[part][1] / self._processes)
            for part, own in sums.items()
        }

    def _add_up(
        self, sums: Mapping[Part, Tensor], sizes: Mapping[Part, int]
    ) -> dict[Part, tuple[Tensor, float]] | None:
        """The sum over all processes and the number of samples of each part; None where one has another part."""
        fits = all(
            self._layout.get(part) == own.shape and torch.promote_types(own.dtype, self._dtype) == self._dtype
            for part, own in sums.items()
        )
        head = torch.tensor([not fits, *(sizes.get(part, 0) for part in self._layout)], dtype=self._dtype)
        pieces = [head.to(self._device)]
        for part, shape in self._layout.items():
            is_here = fits and part in sums
            pieces.append(sums[part].flatten().to(pieces[0]) if is_here else pieces[0].new_zeros(shape.numel()))
        vector = torch.cat(pieces)
        torch.distributed.all_reduce(vector)
        number_of_others, *counts = vector[: len(head)].tolist()
        if number_of_others:
            return None
        found = vector[len(head) :].split([shape.numel() for shape in self._layout.values()])
        return {
            part: (total.view(shape), count)
            for (part, shape), total, count in zip(self._layout.items(), found, counts, strict=True)
        }

    def _agree(self, sums: Mapping[Part, Tensor]) -> None:
        """Takes the parts of all processes into the layout."""
        own = {part: (total.shape, total.dtype) for part, total in sums.items()}
        found = [own] * self._processes
        torch.distributed.all_gather_object(found, own)
        for parts in found:
            for part, (shape, dtype) in parts.items():
                self._dtype = torch.promote_types(self._dtype, dtype)
                if self._layout.setdefault(part, shape) != shape:
                    raise ValueError(_differing(part[0], "several processes", [self._layout[part], shape]))


def _sum_over_batch(taps: list[AnyTap], processes: int) -> Tensor:
    """The sum over the batch of all passes of a part of a layer."""
    layer = taps[0].layer
    if any(isinstance(tap, CompiledTap) for tap in taps) and (len(taps) > 1 or processes > 1):
        has, remedy = ("pass", "call the network once with all inputs")
        if processes > 1:
            has, remedy = ("process", "train without `torch.compile`")
        raise NotImplementedError(
            f"The passes of layer {layer!r} in this step run in a function made by `torch.compile`, which has the mean"
            f" over the batch of one {has} only, where reduction='squared_mean' needs that of all. Use reduction='mean'"
            f" or 'sum', or {remedy}."
        )
    sums = [tap.batch_sum for tap in taps if tap.batch_sum is not None]
    if any(total.shape != sums[0].shape for total in sums):
        raise ValueError(_differing(layer, "this step", [total.shape for total in sums]))
    return torch.stack(sums).sum(dim=0)


def _differing(layer: str, where: str, shapes: list[torch.Size]) -> str:
    return (
        f"The passes of layer {layer!r} in {where} have different shapes:"
        f" {', '.join(str([*shape]) for shape in shapes)}. Their mean over the batch, which reduction='squared_mean'"
        " needs, is not defined; use reduction='mean'."
    )
