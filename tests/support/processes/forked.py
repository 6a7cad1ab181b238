"""Processes that start without the seconds which the imports of torch and of other libraries take.

They are forked off a server that has imported these, but neither Lightning nor torchmetrics: both ask the environment
for their rank where they are imported.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    "torch.distributed.fsdp torch._dynamo torchvision scipy.signal scipy.stats matplotlib.pyplot".split()
)


def start(function: Callable[..., None], *arguments: Any, log: Path, **environment: str) -> BaseProcess:
    """Calls a function in a new process, with this process's environment and these further variables.

    Args:
        function: the function, of a module.
        arguments: what it is called with.
        log: a file for what it prints.
        environment: the variables.
    """
    process = SERVER.Process(target=_call, args=(function, arguments, log, {**os.environ, **environment}))
    process.start()
    return process


def printed_by(code: str, folder: Path) -> list[str]:
    """The words that a new process prints that runs this code, after an assertion that no error ended it.

    Args:
        code: the code.
        folder: a folder for what it prints.
    """
    log, printed = folder / "log", folder / "printed"
    process = start(_execute, textwrap.dedent(code), printed, log=log)
    process.join()
    assert process.exitcode == 0, log.read_text()
    return printed.read_text().split()


def _call(function: Callable[..., None], arguments: tuple[Any, ...], log: Path, environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    function(*arguments)


def _execute(code: str, printed: Path) -> None:
    sys.argv = ["-c"]
    warnings.simplefilter("ignore")
    with printed.open("w") as file, redirect_stdout(file):
        exec(code, vars(sys.modules["__main__"]))
