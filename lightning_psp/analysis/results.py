"""Results that are written to one file and read from it, without pickled code."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from torch import Tensor

AnyResult = TypeVar("AnyResult", bound="Result")


class Result:
    """What the results of this package share: a frozen dataclass is written to one file and read from it.

    Fields may be tensors, numbers, strings and None, and tuples, lists and dicts of them.

    Example:
        >>> from dataclasses import dataclass
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> @dataclass(frozen=True)
        ... class Measured(Result):
        ...     names: tuple[str, ...]
        ...     values: dict[str, float]
        >>> with TemporaryDirectory() as folder:
        ...     Measured(("loss",), {"loss": 0.5}).save(Path(folder, "measured.pt"))
        ...     Measured.load(Path(folder, "measured.pt"))
        Measured(names=('loss',), values={'loss': 0.5})
    """

    def save(self, path: str | Path) -> None:
        """Writes everything to a file of PyTorch that holds numbers, strings and tensors, and no code.

        The file is complete at any time: one that is there is replaced once the new one is written.

        Args:
            path: the file.

        Raises:
            TypeError: if a field holds something else.
        """
        values = {name: _plain(name, getattr(self, name)) for name in _names_of_fields(type(self))}
        path = Path(path)
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
        try:
            torch.save({"result": type(self).__name__, "fields": values}, unfinished)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def load(cls: type[AnyResult], path: str | Path) -> AnyResult:
        """Reads what :meth:`save` has written.

        Args:
            path: the file.

        Returns:
            The same result, its tensors on the CPU.

        Raises:
            ValueError: if the file holds something else.
        """
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(_other_content(cls, path)) from error
        is_result = isinstance(content, dict) and content.get("result") == cls.__name__
        if not is_result or content["fields"].keys() != set(_names_of_fields(cls)):
            raise ValueError(_other_content(cls, path))
        return cls(**content["fields"])


def _names_of_fields(result: type[Any]) -> list[str]:
    return [field.name for field in fields(result)]


def _other_content(result: type[Any], path: str | Path) -> str:
    return f"Expected argument `path` to be a file of `{result.__name__}.save` but got {str(path)!r}."


def _plain(name: str, value: Any) -> Any:
    """The same value, its tensors on the CPU and without what they are views of."""
    if isinstance(value, Tensor):
        return value.detach().clone().cpu()
    if type(value) in (tuple, list):
        return type(value)(_plain(name, each) for each in value)
    if type(value) is dict:
        return {_plain(name, key): _plain(name, each) for key, each in value.items()}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"Expected field `{name}` to hold tensors, numbers and strings but got {type(value).__name__}.")
