"""One of two processes that train together; run by `tests/callback/test_processes.py`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_psp import PSPCallback
from tests.support.followed import LAM
from tests.support.processes import CAN_SHARD, PROCESSES, keep_results
from tests.support.small import BATCH, CLASSES, FEATURES, Classifier, loader, quiet_trainer

Batch = tuple[Tensor, Tensor]


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process may hold a part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Distributed(Classifier):
    """Keeps the weights before and the gradient of every optimiser step."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[dict[str, Tensor]] = []
        self.batches: list[Batch] = []

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        self.batches.append(batch)
        return self.loss(self(batch[0]), batch[1])

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels)

    def on_after_backward(self) -> None:
        """The gradients of an optimiser step are kept."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.weights.append({name: whole(value).detach().clone() for name, value in self.state_dict().items()})
        self.gradients.append([whole(p.grad).clone() for p in self.parameters() if p.grad is not None])


class DeadHead(Distributed):
    """A part of the network that no loss reaches, called in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.dead = nn.Linear(8, 2)

    def forward(self, features: Tensor) -> Tensor:
        hidden = functional.silu(self.first(features))
        self.unused = torch.tanh(self.dead(hidden))
        return self.third(self.relu(self.second(hidden)))


class OneRests(Distributed):
    """In its second step the second process has no use for the network."""

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        if batch_index == 1 and self.global_rank == 1:
            return sum(parameter.sum() for parameter in self.parameters()) * 0.0
        return super().training_step(batch, batch_index)


class OneRestsFirst(OneRests):
    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        return super().training_step(batch, 1 - batch_index)


class OneHasMore(Distributed):
    """In its second step the second process has a layer that the first never has."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Linear(FEATURES, CLASSES)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        loss = super().training_step(batch, batch_index)
        return loss + self.extra(batch[0]) if batch_index == 1 and self.global_rank == 1 else loss

    def extra(self, features: Tensor) -> Tensor:
        return torch.tanh(self.more(features)).mean()


class OneIsEmpty(Distributed):
    """In its second step the second process has no sample."""

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        rows = slice(0, 0 if batch_index == 1 and self.global_rank == 1 else None)
        return functional.cross_entropy(self(batch[0][rows]), batch[1][rows], reduction="sum") / BATCH


class ByHand(Distributed):
    """Manual optimisation."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Batch, batch_index: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_index))
        optimizer.step()


class Compiled(Distributed):
    """Under DDP, torch parts the graph by buckets of gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.compute = torch.compile(super().forward, backend="aot_eager")

    def forward(self, features: Tensor) -> Tensor:
        return self.compute(features)


class WrittenOut(Distributed):
    """No function of its loss tells of the output layer."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits - labels[:, None]).square().mean()


class Sharded(Distributed):
    """Each process keeps a part of the weights."""

    def configure_model(self) -> None:
        if not isinstance(self.first.weight, DTensor):
            mesh = self.device_mesh["data_parallel"]
            for part in (self.first, self.second, self.third, self):
                fully_shard(part, mesh=mesh)


class ShardedAndCheckpointed(Sharded):
    """A part of the network is computed again in the backward pass."""

    def __init__(self, use_reentrant: bool = False) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant

    def forward(self, features: Tensor) -> Tensor:
        return self.third(checkpoint(self.compute, self.first(features), use_reentrant=self.use_reentrant))

    def compute(self, hidden: Tensor) -> Tensor:
        return self.relu(self.second(functional.silu(hidden)))


class Split(Distributed):
    """Each process is meant to compute a part of each layer."""

    def configure_model(self) -> None:
        """Lightning asks for it."""


class Broken(Distributed):
    """The second process has a NaN in its input."""

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        return super().training_step((batch[0] / (1 - self.global_rank), batch[1]), batch_index) * float("nan")


class OneDoesNotEvaluate(Distributed):
    """In evaluations the second process has no use for the network."""

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        if self.global_rank == 0:
            self(batch[0])


class OneHasBrokenLabels(Distributed):
    """In evaluations the second process has a label that is none."""

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        self(batch[0])

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        is_broken = self.global_rank == 1 and not self.training
        return (batch[0], batch[1] - 100) if is_broken else batch


class OneHasLogits(Distributed):
    """In evaluations the second process has no use for the network, and none but the first finds the logits."""

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        if self.global_rank == 0:
            functional.cross_entropy(self(batch[0]), batch[1])


class Kept(DummyLogger):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append(dict(metrics))


class Steps(Callback):
    """Keeps what `trainer.callback_metrics` holds after every step, and what this process told others in it.

    Of the latter only what Python asks for: not the gradients, which `DistributedDataParallel` adds up by itself.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.told: list[list[str]] = []
        self.is_in_step = False

    def on_train_batch_start(self, *args: Any) -> None:
        self.told.append([])
        self.is_in_step = True

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.is_in_step = False
        self.rows.append({key: float(value) for key, value in trainer.callback_metrics.items()})

    def note(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.is_in_step:
            self.told[-1].append(name)
        return function(*args, **kwargs)

    @contextmanager
    def listening(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name in (
                "all_reduce",
                "all_gather",
                "all_gather_object",
                "broadcast",
                "broadcast_object_list",
                "barrier",
            ):
                noted = partial(self.note, name, getattr(torch.distributed, name))
                stack.enter_context(patch.object(torch.distributed, name, noted))
            yield


def parts(rank: int, batches: int = 3, seed: int = 0) -> DataLoader[Any]:
    """Every other batch of the data: two processes' batches make one of twice the size."""
    features, labels = (torch.cat(column) for column in zip(*loader(PROCESSES * batches, seed), strict=True))
    own = torch.arange(len(labels)).reshape(batches, PROCESSES, BATCH)[:, rank].flatten()
    return DataLoader(TensorDataset(features[own], labels[own]), batch_size=BATCH)


def uneven(rank: int) -> DataLoader[Any]:
    """The last batch of the second process has half the samples."""
    features, labels = parts(rank).dataset.tensors
    end = len(labels) - rank * BATCH // 2
    return DataLoader(TensorDataset(features[:end], labels[:end]), batch_size=BATCH)


def sampled(rank: int) -> DataLoader[Any]:
    """Lightning shares these eleven samples out."""
    features, labels = (torch.cat(column) for column in zip(*loader(3), strict=True))
    return DataLoader(TensorDataset(features[:11], labels[:11]), batch_size=3)


SHARDED = {"data_parallel_size": PROCESSES, "tensor_parallel_size": 1}
SPLIT = {"data_parallel_size": 1, "tensor_parallel_size": PROCESSES}
# Lightning takes a module in double precision as it is there.
AS_IT_IS = {"precision": "32-true"}

# Arguments of the callback by the name of the run, where they are others.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "broken labels": {"entropy": "auto"},
    "other number of classes": {"entropy": "auto", "num_classes": CLASSES + 1},
}
# In these both processes end with an error, and can go on.
ERRORS = ("split", "broken labels of orders", "other number of classes", "squared mean, compiled")

# Name of a run to what makes the module, the arguments of its strategy, further ones of the trainer, and the data.
RUNS: dict[str, tuple[Callable[[], Distributed], dict[str, Any], dict[str, Any], Callable[[int], DataLoader[Any]]]] = {
    "plain": (Distributed, {}, {}, parts),
    "unused": (DeadHead, {"find_unused_parameters": True}, {}, parts),
    "static": (DeadHead, {"static_graph": True}, {}, parts),
    "buckets": (Distributed, {"gradient_as_bucket_view": True}, {}, parts),
    "accumulated": (Distributed, {}, {"accumulate_grad_batches": 2}, parts),
    "manual": (ByHand, {}, {}, parts),
    "compiled": (Compiled, {}, {}, parts),
    "compiled in parts": (Compiled, {"bucket_cap_mb": 1e-4}, {}, parts),
    "written out": (WrittenOut, {}, {}, parts),
    "uneven": (Distributed, {}, {}, uneven),
    "sampled": (Distributed, {}, {"use_distributed_sampler": True}, sampled),
    "resting": (OneRests, {}, {}, parts),
    "resting first": (OneRestsFirst, {}, {}, parts),
    "empty": (OneIsEmpty, {}, {}, parts),
    "one does not evaluate": (OneDoesNotEvaluate, {}, {}, parts),
    "broken labels": (OneHasBrokenLabels, {}, {}, parts),
    "broken labels of orders": (OneHasBrokenLabels, {}, {}, parts),
    "other number of classes": (OneHasLogits, {}, {}, parts),
    "broken": (Broken, {}, {}, parts),
    "split": (Split, SPLIT, AS_IT_IS, parts),
    "sharded": (Sharded, SHARDED, AS_IT_IS, parts),
    "accumulated, sharded": (Sharded, SHARDED, {**AS_IT_IS, "accumulate_grad_batches": 2}, parts),
    "checkpointed, sharded": (ShardedAndCheckpointed, SHARDED, AS_IT_IS, parts),
    "checkpointed reentrantly, sharded": (partial(ShardedAndCheckpointed, True), SHARDED, AS_IT_IS, parts),
}


# Runs in which the mean over the batch of both processes is penalised, and none of these has an entropy.
SQUARED_MEAN: dict[str, Any] = {
    f"squared mean, {name}": run
    for name, run in {**RUNS, "more": (OneHasMore, {"find_unused_parameters": True}, {}, parts)}.items()
    if name in ("plain", "accumulated", "manual", "uneven", "resting", "resting first", "empty", "more", "sharded")
}
RUNS.update(SQUARED_MEAN)
RUNS["squared mean, compiled"] = RUNS["compiled"]
ARGUMENTS.update({name: {"reduction": "squared_mean", "entropy": ()} for name in RUNS if name.startswith("squared")})


def values_of(callback: PSPCallback) -> dict[str, float]:
    """What the callback's metrics hold, by the key that it was logged under."""
    values = {}
    for stage, layers in callback.metrics.items():
        for layer, record in layers.items():
            values[f"psp_z2_{stage}/{layer}"] = float(record.mean_square.compute())
            for order, metric in record.entropies.items():
                key = "entropy" if order == 1 else f"entropy{order}"
                values[f"psp_{key}_{stage}/{layer}"] = float(metric.compute())
    return values


def run(name: str, rank: int) -> dict[str, Any]:
    kind, strategy, settings, data = RUNS[name]
    torch.manual_seed(0)
    shares = ModelParallelStrategy if "tensor_parallel_size" in strategy else DDPStrategy
    module, logger, steps = kind().double(), Kept(), Steps()
    callback = PSPCallback(lam=LAM, **{"entropy": (1, 2), "num_classes": CLASSES, **ARGUMENTS.get(name, {})})
    trainer = quiet_trainer(
        callback,
        steps,
        devices=PROCESSES,
        strategy=shares(process_group_backend="gloo", timeout=timedelta(seconds=20), **strategy),
        logger=logger,
        **{"use_distributed_sampler": False, "log_every_n_steps": 2, **settings},
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with steps.listening():
            trainer.fit(module, data(rank), parts(rank, 2, seed=1))
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
        final = {name: whole(value).detach().clone() for name, value in module.state_dict().items()}
        trainer.test(module, parts(rank, 1, seed=2), verbose=False)
    return {
        "batches": module.batches,
        "gradients": module.gradients,
        "weights": module.weights,
        "final": final,
        "metrics": {**metrics, **{key: float(value) for key, value in trainer.callback_metrics.items()}},
        "kept": values_of(callback),
        "logged": logger.rows,
        "steps": steps.rows,
        "told": steps.told,
        "warnings": [str(warning.message) for warning in said],
    }


def main(folder: Path, rank: int) -> None:
    names = [name for name in RUNS if CAN_SHARD or not name.endswith("sharded")]
    keep_results(folder, rank, {name: partial(run, name, rank) for name in names}, ERRORS)
