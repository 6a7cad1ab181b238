"""A file in which a computation keeps the points that it has finished."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_psp.analysis.point import Point
from lightning_psp.analysis.results import write_whole
from lightning_psp.functional.plain_files import read_plain

_KIND = "points of loss_plane"


class PointsFile:
    """The points that are finished, complete at any time, and what they belong to.

    Each process writes a file of its own, the first one `path` itself.

    Args:
        path: the file.
        run: what tells this computation from another: name to value.
        process: number of the process.
    """

    def __init__(self, path: str | Path, run: Mapping[str, Any], process: int) -> None:
        self._path = Path(path)
        if self._path.is_dir() or not self._path.parent.is_dir():
            raise ValueError(f"Expected argument `path` to be a file in a folder that is there but got {str(path)!r}.")
        self._own = self._path if process == 0 else self._of_process(process)
        self._run = dict(run)

    def read(self) -> dict[int, Point]:
        """The points in the files of all processes.

        Raises:
            ValueError: if a file belongs to another computation, or is no such file.
        """
        points: dict[int, Point] = {}
        for file in self._files():
            points.update(self._read(file))
        return points

    def write(self, points: Mapping[int, Point]) -> None:
        """Replaces the file of this process."""
        content = {number: (point.values, point.layers) for number, point in points.items()}
        write_whole({"kind": _KIND, "run": self._run, "points": content}, self._own)

    def remove_others(self) -> None:
        """Removes the files of other processes, when this one has all points."""
        for file in self._files():
            if file != self._own:
                file.unlink()

    def _of_process(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.process{number}")

    def _files(self) -> list[Path]:
        others = sorted(self._path.parent.glob(f"{glob.escape(self._path.name)}.process[0-9]*"))
        # Not what is left of one whose process was killed while it wrote.
        others = [file for file in others if file.suffix.removeprefix(".process").isdigit()]
        return [file for file in (self._path, *others) if file.exists()]

    def _read(self, file: Path) -> dict[int, Point]:
        content = read_plain(file)
        if not isinstance(content, dict) or content.get("kind") != _KIND:
            raise ValueError(f"Expected argument `path` to be a file of `loss_plane` but got {str(file)!r}.")
        before = content["run"]
        differing = [name for name in self._run if before.get(name) != self._run[name]]
        if differing:
            raise ValueError(
                f"Expected argument `path` to be a file of this computation but {str(file)!r} was begun with other"
                f" values of {', '.join(f'`{name}`' for name in differing)}. Use another file, or remove it."
            )
        return {number: Point(values, layers) for number, (values, layers) in content["points"].items()}
