"""Functions of torch that have no public name."""

from __future__ import annotations

from typing import Any

from lightning_psp.torch_private.names import find

_nn: Any = find("torch._C._nn")

# Where torch keeps functions of which `torch.nn.functional` has some under the same name and wraps others: graphs have
# the former. Without it, the latter are known by their public names alone.
FURTHER_NAMESPACES: tuple[Any, ...] = () if _nn is None else (_nn,)
