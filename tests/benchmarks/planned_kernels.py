"""What the callback adds to the kernels that `torch.compile` makes for a GPU: how many, and what they read and write.

No GPU is used. A network and the callback are traced and differentiated as in a training, and inductor then plans the
graphs for an H100, of which it is told what it asks for. The plans are counted and thrown away: the launches of its own
kernels, and the bytes that it takes them to read and write, with those of convolutions and products of matrices. What
a network costs besides, the processor's time above all, is not in them.

    python tests/benchmarks/planned_kernels.py
    python tests/benchmarks/planned_kernels.py --models vit_b_16 gpt --precisions bf16-mixed --batch-size 8
"""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from collections.abc import Callable
from copy import deepcopy
from types import SimpleNamespace
from typing import Any, NamedTuple, NoReturn

os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"

import torch
from lightning.pytorch import Callback, Trainer
from models import LAM, MODELS, SMALL_MODELS, Classifier
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.device_interface import CudaInterface
from torch._functorch import config as autograd_config
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._guards import TracingContext, tracing
from torch._inductor import compile_fx
from torch._inductor import config as inductor_config
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses import FakeTensorMode
from torch.fx.node import map_aggregate
from torch.utils import _triton
from torch.utils.data import DataLoader
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from lightning_psp import PSPCallback

CAPABILITY = 9, 0
GPU = torch.device("cuda", 0)
H100 = SimpleNamespace(
    name="NVIDIA H100",
    major=CAPABILITY[0],
    minor=CAPABILITY[1],
    multi_processor_count=132,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    regs_per_multiprocessor=65536,
    shared_memory_per_block_optin=232448,
    warp_size=32,
    L2_cache_size=50 * 2**20,
    total_memory=80 * 2**30,
    gcnArchName="",
)


class Plan(NamedTuple):
    """The kernels of one graph.

    Args:
        launches: how often one of inductor's own kernels is started.
        bytes: what all kernels read and write.
    """

    launches: int
    bytes: int


class PlannedError(Exception):
    """Ends a compilation, and the training, when its kernels are planned."""


def pretend_gpu() -> None:
    """Has inductor believe in an H100."""
    answers = {
        "get_device_properties": H100,
        "get_compute_capability": 10 * CAPABILITY[0] + CAPABILITY[1],
        "current_device": 0,
        "device_count": 1,
        "is_available": True,
        "is_bf16_supported": True,
    }
    for name, answer in answers.items():
        for owner in (CudaInterface, CudaInterface.Worker):
            setattr(owner, name, staticmethod(lambda *_, answer=answer, **__: answer))
    torch.cuda.get_device_properties = lambda device=None: H100
    torch.cuda.get_device_capability = lambda device=None: CAPABILITY
    torch.cuda.current_device = lambda: 0
    _triton.triton_hash_with_backend = lambda: ""
    target = GPUTarget("cuda", 10 * CAPABILITY[0] + CAPABILITY[1], H100.warp_size)
    driver._active = SimpleNamespace(get_current_target=lambda: target)
    inductor_config.compile_threads = 1
    autograd_config.force_non_lazy_backward_lowering = True


class Planner:
    """A backend of `torch.compile` that plans the forward and the backward pass, and ends there."""

    def __init__(self) -> None:
        self.plans: list[Plan] = []

    def __call__(self, graph: fx.GraphModule, examples: list[Any]) -> NoReturn:
        """Plans the kernels of a graph."""
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        backend = aot_autograd(
            fw_compiler=lambda graph, inputs: self._plan(graph, inputs, False),
            bw_compiler=lambda graph, inputs: self._plan(graph, inputs, True),
            partition_fn=_partition,
            decompositions=select_decomp_table(),
            keep_inference_input_mutations=True,
        )
        for node in graph.graph.nodes:
            node.meta.pop("example_value", None)
        with tracing(TracingContext(mode)), V.set_fake_mode(mode):
            backend(graph, [_fake(example, mode) for example in examples])
        raise PlannedError

    def _plan(self, graph: fx.GraphModule, inputs: list[Any], is_backward: bool) -> Callable[..., Any]:
        def take(lowering: GraphLowering) -> NoReturn:
            code, _ = lowering.codegen()
            number_of_bytes, _, _ = lowering.count_bytes()
            self.plans.append(Plan(code.value.count(".run("), number_of_bytes))
            raise PlannedError

        before, GraphLowering.compile_to_module = GraphLowering.compile_to_module, take
        try:
            compile_fx.compile_fx_inner(*_on_gpu(graph, inputs), is_backward=is_backward)
        except Exception as error:
            if not _has_planned(error):
                raise
        finally:
            GraphLowering.compile_to_module = before
        return graph


def _partition(graph: fx.GraphModule, inputs: Any, **options: Any) -> Any:
    compile_fx._recursive_joint_graph_passes(graph)
    return min_cut_rematerialization_partition(graph, inputs, compiler="inductor", **options)


def _fake(value: Any, mode: FakeTensorMode, device: torch.device | None = None) -> Any:
    """The same without memory, for a device."""
    if isinstance(value, (tuple, list)):
        return type(value)(_fake(each, mode, device) for each in value)
    if not isinstance(value, Tensor):
        return value
    with getattr(value, "fake_mode", mode):
        fake = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device or value.device)
    return fake.requires_grad_(value.requires_grad)


def _on_gpu(graph: fx.GraphModule, inputs: list[Any]) -> tuple[fx.GraphModule, list[Any]]:
    """A graph that was traced for a processor, for the GPU: autograd differentiates only for devices that are there."""
    graph, mode = deepcopy(graph), FakeTensorMode()
    for node in graph.graph.nodes:
        node.meta.pop("tensor_meta", None)
        if "val" in node.meta:
            node.meta["val"] = _fake(node.meta["val"], mode, GPU)
        node.args, node.kwargs = map_aggregate((node.args, node.kwargs), _moved)
    graph.recompile()
    return graph, _fake(inputs, mode, GPU)


def _moved(value: Any) -> Any:
    return GPU if isinstance(value, torch.device) else value


def _has_planned(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, PlannedError):
        error = error.__cause__ or error.__context__
    return error is not None


def plans_of_step(name: str, batch_size: int, precision: str, callbacks: list[Callback]) -> list[Plan]:
    """The plans of the forward and the backward pass of a training step."""
    torch.compiler.reset()
    torch.manual_seed(0)
    planner, model = Planner(), MODELS[name]
    network = torch.compile(model.make(model.size), backend=planner)
    loader = DataLoader([model.batch(model.size, batch_size, "cpu")], batch_size=None)
    trainer = Trainer(
        max_steps=1,
        precision=precision,
        callbacks=callbacks,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        trainer.fit(Classifier(network), loader)
    except Exception as error:
        if not _has_planned(error):
            raise
    return planner.plans


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Count the kernels that torch.compile plans for a GPU.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=SMALL_MODELS, help="networks")
    parser.add_argument("--precisions", nargs="+", default=["32-true", "bf16-mixed"], help="Lightning's `precision`")
    parser.add_argument("--batch-size", type=int, default=64, help="samples of a batch")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for logger in ("lightning.pytorch", "torch"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    pretend_gpu()
    print("| model | precision | batch | launches forward | backward | bytes forward | backward | both |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for name in options.models:
        for precision in options.precisions:
            arms = [
                plans_of_step(name, options.batch_size, precision, callbacks)
                for callbacks in ([], [PSPCallback(lam=LAM)])
            ]
            launches = [f"{before.launches} → {after.launches}" for before, after in zip(*arms, strict=True)]
            ratios = [f"{after.bytes / before.bytes:.3f}" for before, after in zip(*arms, strict=True)]
            without, with_callback = (sum(plan.bytes for plan in plans) for plans in arms)
            cells = [name, precision, str(options.batch_size), *launches, *ratios, f"{with_callback / without:.3f}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
