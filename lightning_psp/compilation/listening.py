"""Potentials inside functions made by `torch.compile`.

While a capture is entered, the compiler is handed each graph in a form that tells of its potentials, and each run of
the compiled graph tells the capture of them. What a graph takes and gives for this:

- the sum of squares of each potential, an output of one number, which becomes a part of the kernels around it;
- a coefficient for each potential, an input of one number. Where gradient passes the potential, the coefficient times
  the potential is added to it. The coefficients are 0 until a backward pass is prepared: only the backward of the
  graph reads them, so that λ or a loss scale may change without another compilation.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from lightning_psp.capture.mode import Capture
from lightning_psp.compilation.analysis import find_potentials
from lightning_psp.compilation.region import Region
from lightning_psp.compilation.rewriting import copy_graph
from lightning_psp.compilation.runs import Run
from lightning_psp.torch_private.compiler import (
    change_compiler,
    check_compiler,
    comptime,
    uses_cuda_graphs_by_default,
)

# Compiled code may copy an input that does not start at an aligned address: of so many values each coefficient is one.
ALIGNED = 16

_entered: list[Capture[Any]] = []


@contextmanager
def told_of_graphs(capture: Capture[Any]) -> Iterator[None]:
    """While open, compiled graphs tell this capture of their potentials."""
    _entered.append(capture)
    # Without a mode of functions, which compiled code does not see, transformers of torch run in one fused kernel where
    # no gradient is asked for.
    had_fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(had_fast_path)
        _entered.remove(capture)


def announce_graph(key: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls a function while it is traced, and has the graph that is being made searched for potentials.

    Args:
        key: what compiled code depends on; tracing takes place anew for another one.
        function: the function.
        args: its arguments.
        kwargs: its arguments by keyword.
    """
    if key:
        comptime(_wrap_compiler)
    if function is Tensor.unflatten:
        # Some compilers cannot follow the method's own Python, and compile nothing that comes after it.
        function = torch.unflatten
    return function(*args, **kwargs)


def _wrap_compiler(context: Any) -> None:
    check_compiler()
    change_compiler(context, _with_potentials)


def _with_potentials(compile_graph: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a compiler of graphs that tell of their potentials."""
    if hasattr(compile_graph, "tells_of_potentials"):
        return compile_graph

    @functools.wraps(compile_graph)
    def compile_with_potentials(graph: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Callable[..., Any]:
        if not _entered:
            plain: Callable[..., Any] = compile_graph(graph, inputs, **options)
            return plain
        graph = copy_graph(graph)
        capture = _entered[-1]
        with capture.suspended():
            region = find_potentials(
                graph,
                inputs,
                make_capture=capture.duplicate,
                network=capture.root,
                known=capture.records.origins.known,
                prefix=capture.records.frames.innermost_path(),
                reduction=capture.reduction,
            )
        used = {index for point in region.points if not point.depends_on_parameter for index in point.inputs}
        compiled = compile_graph(graph, [*inputs, *_coefficients(region)], **options)
        if uses_cuda_graphs(compile_graph, [device for device, _ in region.coefficients]):
            raise NotImplementedError(
                "CUDA graphs, which `torch.compile` uses with this mode or these options, copy their inputs before the"
                " penalty on potentials is known. Compile with mode='default' or 'max-autotune-no-cudagraphs'."
            )

        def run(*values: Any) -> Any:
            coefficients = _coefficients(region)
            capture = _entered[-1] if _entered else None
            if capture is None:
                return compiled(*values, *coefficients)[: region.number_of_results]
            if capture.is_checkpointed and coefficients:
                layer = region.sources[region.points[0].source].name
                raise NotImplementedError(
                    f"The potentials of layer {layer!r} lie inside a function made by `torch.compile`"
                    " that an activation checkpoint runs, and would be missing when the checkpoint runs it again."
                    " Compile this part of the network or checkpoint it, not both."
                )
            with capture.suspended():
                # Before the graph overwrites an input, which then has another history.
                sources = {index: (values[index].grad_fn, values[index].output_nr) for index in used}
                outputs = compiled(*values, *coefficients)
                if not capture.records.frames.suppressed:
                    Run(
                        region,
                        values,
                        sources,
                        outputs,
                        coefficients,
                        gives_values=capture.reduction is None,
                        records=capture.records,
                    ).tell()
            return outputs[: region.number_of_results]

        return run

    compile_with_potentials.tells_of_potentials = True  # type: ignore[attr-defined]
    return compile_with_potentials


def uses_cuda_graphs(compile_graph: Callable[..., Any], devices: Iterable[torch.device]) -> bool:
    """Whether a compiler has devices replay what they were recorded to do."""
    name = getattr(compile_graph, "__name__", "")
    options = getattr(compile_graph, "config", None) or {}
    is_inductors_choice = name == "inductor" and options.get("triton.cudagraphs", uses_cuda_graphs_by_default())
    return (is_inductors_choice or name == "cudagraphs") and any(device.type == "cuda" for device in devices)


def _coefficients(region: Region) -> list[Tensor]:
    """A 0 for each potential."""
    numbers = {
        (device, dtype): iter(torch.zeros(count, ALIGNED, device=device, dtype=dtype)[:, 0].unbind())
        for (device, dtype), count in Counter(region.coefficients).items()
    }
    return [next(numbers[kind]) for kind in region.coefficients]
