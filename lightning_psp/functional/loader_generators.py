"""The random number generators that data loaders have of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch


def loader_generators(loaders: Any) -> list[torch.Generator]:
    """The generators of data loaders, of their samplers and of their data sets, each once.

    Args:
        loaders: a loader, or lists, tuples and mappings of them, also as Lightning combines them. What else is among
            them has no generator.

    Example:
        >>> from torch.utils.data import DataLoader, RandomSampler
        >>> generator, numbers = torch.Generator(), list(range(4))
        >>> loaders = {"a": DataLoader(numbers, sampler=RandomSampler(numbers, generator=generator)), "b": numbers}
        >>> loader_generators(loaders) == [generator]
        True
    """
    found: dict[int, torch.Generator] = {}
    waiting = deque([loaders])
    while waiting:
        each = waiting.popleft()
        if isinstance(each, Mapping):
            waiting.extend(each.values())
        elif isinstance(each, (list, tuple)):
            waiting.extend(each)
        elif not isinstance(each, torch.Tensor):
            waiting.extend(getattr(each, "flattened", ()))
            batch_sampler = getattr(each, "batch_sampler", None)
            samplers = getattr(each, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)
            for holder in (each, *samplers, getattr(each, "dataset", None)):
                generator = getattr(holder, "generator", None)
                if isinstance(generator, torch.Generator):
                    found[id(generator)] = generator
    return [*found.values()]
