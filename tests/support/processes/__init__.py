"""Programs that two processes run together, and how a test starts them and how they meet."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

ROOT = Path(__file__).parents[3]
PYTHONPATH = os.pathsep.join([str(ROOT), str(ROOT / "examples")])
PROCESSES = 2


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start_processes(program: str, folder: Path, timeout: float, **settings: str) -> None:
    """Run a module of this folder as `python -m … FOLDER RANK` in each process; what it prints goes to the folder."""
    processes, logs = [], []
    for rank in range(PROCESSES):
        logs.append((folder / f"{rank}.log").open("w"))
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", f"{__name__}.{program}", str(folder), str(rank)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": PYTHONPATH, "LOCAL_RANK": str(rank), **settings},
                stdout=logs[-1],
                stderr=subprocess.STDOUT,
            )
        )
    try:
        for process in processes:
            process.wait(timeout=timeout)
    finally:
        for process, log in zip(processes, logs, strict=True):
            process.kill()
            process.wait()
            log.close()


def errors_of(folder: Path) -> str:
    """What `in_a_group` caught, empty if nothing."""
    return "\n".join(path.read_text() for path in sorted(folder.glob("error *")))


def in_a_group(work: Callable[[Path, int], None]) -> None:
    """Do the work of one process, with the folder and its rank, within a process group of Gloo."""
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=60),
    )
    try:
        work(folder, rank)
    except BaseException:
        (folder / f"error {rank}").write_text(traceback.format_exc())
    finally:
        distributed.destroy_process_group()
