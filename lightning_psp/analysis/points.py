"""The points of a plane, one after another: kept in a file, and shared among processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning_psp.analysis.point import Point
from lightning_psp.analysis.points_file import PointsFile
from lightning_psp.analysis.processes import decided_by_first, gathered, place
from lightning_psp.functional.progress import progress_bar


def measured_points(
    number_of_points: int, measure: Callable[[int], Point], run: Mapping[str, Any], path: str | Path | None
) -> list[Point]:
    """All points of a computation, in each of the processes that share it.

    Args:
        number_of_points: how many there are.
        measure: measures the point of a number.
        run: what tells the computation from another: name of an argument to value.
        path: the file in which points are kept and found; None for none.

    Raises:
        ValueError: if the processes have different arguments, or the file belongs to another computation.
    """
    process, processes = place()
    for other in gathered(lambda: run):
        differing = [name for name in run if other[name] != run[name]]
        if differing:
            raise ValueError(
                "Expected all processes to have the same arguments but got different values of"
                f" {', '.join(f'`{name}`' for name in differing)}."
            )
    file = None if path is None else PointsFile(path, run, process)
    done = {} if file is None else decided_by_first(file.read)
    left = [number for number in range(number_of_points) if number not in done]

    def measure_share() -> dict[int, Point]:
        own: dict[int, Point] = {}
        share = left[process::processes]
        with progress_bar(len(share), "point", "Loss plane") as progress:
            for number in share:
                own[number] = measure(number)
                if file is not None:
                    file.write({**done, **own})
                progress.update()
        return own

    found = gathered(measure_share)
    points = dict(done)
    for own in found:
        points.update(own)
    if file is not None and process == 0:
        file.write(points)
        file.remove_others()
    return [points[number] for number in range(number_of_points)]
