"""Writes the table of libraries: `python -m tests.libraries.report [PATTERN …] [--output docs/libraries.md]`.

Prints for each model the layers that are expected and not found, and those that are found and not expected.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.metadata
import logging
import time
import traceback
from pathlib import Path

import torch

from tests.libraries.catalogue import rows
from tests.libraries.check import Found, Row, check

HEADER = """\
<!-- Written by `python -m tests.libraries.report --output docs/libraries.md`. -->
# Networks of other libraries

Each network is built small, with random weights, and trained for a step with a loss that its library has or means for
it, within the network where it takes labels, and in the step. *Exact* means that the layers are those that the
definition gives to the library's code, by name and number, and that the gradient is that of the loss plus λR to 1e-8
relative in float64 against plain hooks on these layers, by `record_potentials` and by `PSPCallback`, or by the latter
in the library's own Trainer. *Said* means that a warning or an error names what could not be seen and the remedy.
PyTorch {torch}, Lightning {lightning}.

| library | version | model | layers | verdict |
|---|---|---|---:|---|
"""


def version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""


STEP = ", loss in the step"


def line(row: Row, results: list[Found]) -> str:
    """Of one network, with all that was tried of it."""
    verdicts: dict[str, list[str]] = {}
    for found in results:
        verdicts.setdefault(found.verdict, []).append(found.way)
    if len(verdicts) == 1:
        verdict = next(iter(verdicts))
    else:
        verdict = ", ".join(f"{' and '.join(dict.fromkeys(ways))}: {text}" for text, ways in verdicts.items())
    verdict = verdict.replace("|", "\\|").replace("\n", " ")
    if len(verdict) > 200:
        verdict = verdict[:200] + " …"
    name = row.name.removesuffix(STEP)
    return f"| {row.library} | {version(row.library)} | {name} | {len(results[0].expected)} | {verdict} |\n"


def shown(verdict: str, whole: bool) -> str:
    return verdict if whole or len(verdict) < 420 else verdict[:400] + " …"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("patterns", nargs="*", default=["*"], help="of names like transformers-bert")
    parser.add_argument("--output", type=Path, help="file for the table")
    parser.add_argument("--layers", action="store_true", help="print all layers expected and found")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).handlers.clear()  # what is said is in the verdict
    tried: dict[str, tuple[Row, list[Found]]] = {}
    right = total = 0
    for row in rows():
        if not any(fnmatch.fnmatch(str(row), pattern) for pattern in arguments.patterns):
            continue
        if not version(row.library):
            print(f"{row}: {row.library} is not installed")
            continue
        total += 1
        start = time.perf_counter()
        try:
            results = check(row)
        except Exception:
            print(f"{row}: THE ROW ITSELF FAILS\n{traceback.format_exc(limit=-4)}")
            continue
        right += all(found.verdict in ("exact", "said") for found in results)
        for found in results:
            print(f"{row} [{found.way}] {len(found.expected)} layers: {shown(found.verdict, arguments.layers)}")
            if arguments.layers:
                print(f"    expected {found.expected}\n    found    {found.layers}\n    said     {found.said}")
        print(f"    {time.perf_counter() - start:.1f} s", flush=True)
        tried.setdefault(str(row).removesuffix(STEP), (row, []))[1].extend(results)
    print(f"{right} of {total} right")
    if arguments.output:
        header = HEADER.format(torch=torch.__version__, lightning=version("lightning"))
        lines = [line(row, results) for row, results in tried.values()]
        arguments.output.write_text(header + "".join(lines))
        print(
            f"{len(lines)} networks of {len({row.library for row, _ in tried.values()})} libraries: {arguments.output}"
        )


if __name__ == "__main__":
    main()
