"""Finding what a version of torch has under a private name, and saying that it lacks it."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NoReturn

import torch


def find(path: str) -> Any:
    """What there is under a dotted name, a module or a part of one; None where there is nothing.

    Example:
        >>> find("torch.overrides.TorchFunctionMode").__name__
        'TorchFunctionMode'
        >>> find("torch.overrides.NoSuchThing") is None
        True
    """
    parts = path.split(".")
    found: Any = import_module(parts[0])
    for number, name in enumerate(parts[1:], start=2):
        if not hasattr(found, name):
            try:
                import_module(".".join(parts[:number]))
            except ImportError:
                return None
        found = getattr(found, name, None)
    return found


def lacking(name: str, consequence: str, remedy: str) -> NoReturn:
    """Raises an error for a name that this version of torch does not have.

    Args:
        name: the name.
        consequence: what cannot be done without it.
        remedy: what the user can do.

    Raises:
        NotImplementedError: in any case.
    """
    raise NotImplementedError(f"torch {torch.__version__} has no `{name}`, without which {consequence}. {remedy}")
