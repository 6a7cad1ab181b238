"""Programs that two processes run together, and how a test starts them, how they meet, and what comes back.

A program is a module `…_worker` of this folder with a function `main(folder, rank)`.
"""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from tests.support.processes import forked

PROCESSES = 2
# Older versions of torch shard weights on accelerators only.
CAN_SHARD = hasattr(torch.cpu.Stream(), "record_event")
_TIMEOUT = 600  # seconds, for processes that wait for one another


def results_of(program: str, names: Iterable[str], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Runs a program, and returns what each process kept by :func:`keep_results`, by name of the run."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0"}
    processes = [
        forked.start(_enter, program, folder, rank, log=folder / f"{rank}.log", LOCAL_RANK=str(rank), **meeting)
        for rank in range(PROCESSES)
    ]
    try:
        for process in processes:
            process.join(_TIMEOUT)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return {name: [_load(folder, name, rank) for rank in range(PROCESSES)] for name in names}


def without_errors(results: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """The same results, after an assertion that no run of any process ended with an error."""
    for result in (result for both in results.values() for result in both):
        assert "error" not in result, result["error"]
    return results


def _load(folder: Path, name: str, rank: int) -> dict[str, Any]:
    path = folder / f"{name} {rank}.pt"
    if path.exists():
        found: dict[str, Any] = torch.load(path, weights_only=False)
        return found
    return {"error": f"no result of {name!r}; the process printed:\n{(folder / f'{rank}.log').read_text()}"}


def _enter(program: str, folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    import_module(f"{__name__}.{program}").main(folder, rank)


def keep_results(
    folder: Path, rank: int, runs: Mapping[str, Callable[[], dict[str, Any]]], may_fail: Collection[str] = ()
) -> None:
    """Does one run after another in one process, and puts what it returns, or its error, into a file of the folder.

    Args:
        folder: the folder.
        rank: number of the process.
        runs: the runs by name.
        may_fail: those that end with an error in both processes, which can go on.
    """
    for name, run in runs.items():
        try:
            result = run()
        except BaseException:
            result = {"error": traceback.format_exc()}
        torch.save(result, folder / f"{name} {rank}.pt")
        if "error" in result and name not in may_fail:  # the other process cannot go on either
            break


@contextmanager
def process_group(folder: Path, rank: int) -> Iterator[None]:
    """While open, the processes can reach one another by Gloo."""
    meeting = f"file://{folder / 'meeting'}"
    timeout = timedelta(seconds=60)
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=PROCESSES, timeout=timeout)
    try:
        yield
    finally:
        distributed.destroy_process_group()
