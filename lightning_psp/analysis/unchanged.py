"""Leaving a network as it was."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import nn


class Unchanged:
    """Gives a network back what it had when this was made: weights, buffers, modes, and what asks for a gradient.

    To be entered twice, for Ctrl-C may cut short one exit, but not the other.

    Args:
        module: the network.

    Example:
        >>> network = nn.Linear(2, 3)
        >>> unchanged = Unchanged(network)
        >>> with unchanged, unchanged:
        ...     _ = nn.init.zeros_(network.eval().weight)
        >>> network.training, bool(network.weight.any())
        (True, True)
    """

    def __init__(self, module: nn.Module) -> None:
        self._modes = [(part, part.training) for part in module.modules()]
        tables: list[Any] = [table for part in module.modules() for table in (part._parameters, part._buffers)]
        self._tables = [(table, dict(table)) for table in tables]
        self._flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
        tensors = [*module.parameters(), *module.buffers()]
        self._values = [(tensor, tensor.detach().clone()) for tensor in tensors]

    def __enter__(self) -> Unchanged:
        """Does nothing: what is given back was noted when this was made."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives everything back."""
        for part, is_training in self._modes:
            part.training = is_training
        for table, before in self._tables:
            table.clear()
            table.update(before)
        for parameter, requires_grad in self._flags:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
        with torch.inference_mode():  # where tensors that were made in that mode can be written, too
            for tensor, value in self._values:
                # `data`: a graph of the user's that holds a tensor is not to take it for overwritten.
                tensor.data.copy_(value)
