"""Results that are written to one file and read from it, without pickled code."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_psp.functional.plain_files import read_plain

AnyResult = TypeVar("AnyResult", bound="Result")


class Result:
    """What the results of this package share: a frozen dataclass is written to one file and read from it.

    Fields may be tensors, numbers, strings, None and other results, and tuples, lists and dicts of them.

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

    def __repr__(self) -> str:
        return shown(self)

    def save(self, path: str | Path) -> None:
        """Writes everything to a file of PyTorch that holds numbers, strings and tensors, and no code.

        The file is complete at any time: one that is there is replaced once the new one is written.

        Args:
            path: the file.

        Raises:
            TypeError: if a field holds something else.
        """
        write_whole(_plain("", self), Path(path))

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
        # A program may have a class of the same name.
        kinds = {kind.__name__: kind for kind in (*Result.__subclasses__(), cls)}
        result = _restored(read_plain(Path(path)), kinds)
        if not isinstance(result, cls):
            raise ValueError(f"Expected argument `path` to be a file of `{cls.__name__}.save` but got {str(path)!r}.")
        return result


def shown(result: Any) -> str:
    """The text of a dataclass, with no more than the shape of a tensor of many elements."""
    named = (f"{each.name}={_short(getattr(result, each.name))}" for each in fields(result))
    return f"{type(result).__name__}({', '.join(named)})"


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor({_rounded(value.tolist())})" if value.numel() <= 10 else f"tensor of {[*value.shape]}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_short(each)}" for key, each in value.items()) + "}"
    return repr(value)


def _rounded(value: Any) -> str:
    """Numbers in nested lists, with as many digits as a reader can use."""
    if isinstance(value, list):
        return f"[{', '.join(map(_rounded, value))}]"
    return repr(float(f"{value:.6g}") if isinstance(value, float) else value)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives another file to write to, which takes the place of this one once the block has ended: no half of a file."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_whole(content: Any, path: Path) -> None:
    """Writes a file of PyTorch that is complete at any time."""
    with replacing(path) as file:
        torch.save(content, file)


def _restored(value: Any, kinds: Mapping[str, Any]) -> Any:
    """The same value with results in place of the dicts that they were written as."""
    if isinstance(value, (tuple, list)):
        return type(value)(_restored(each, kinds) for each in value)
    if not isinstance(value, dict):
        return value
    name = value.get("result")
    kind = kinds.get(name) if value.keys() == {"result", "fields"} and isinstance(name, str) else None
    if kind is None:
        return {key: _restored(each, kinds) for key, each in value.items()}
    values = value["fields"]
    is_same = isinstance(values, dict) and list(values) == [field.name for field in fields(kind)]
    return kind(**{name: _restored(each, kinds) for name, each in values.items()}) if is_same else None


def _plain(name: str, value: Any) -> Any:
    """The same value, its tensors on the CPU and without what they are views of, and dicts for results."""
    if isinstance(value, Result):
        names = [field.name for field in fields(value)]  # type: ignore[arg-type]
        return {"result": type(value).__name__, "fields": {each: _plain(each, getattr(value, each)) for each in names}}
    if isinstance(value, Tensor):
        return value.detach().clone().cpu()
    if type(value) in (tuple, list):
        return type(value)(_plain(name, each) for each in value)
    if type(value) is dict:
        return {_plain(name, key): _plain(name, each) for key, each in value.items()}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"Expected field `{name}` to hold tensors, numbers and strings but got {type(value).__name__}.")
