"""Work that the processes of torch.distributed share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

Value = TypeVar("Value")


def place() -> tuple[int, int]:
    """The number of this process, and how many there are: 0 and 1 where torch.distributed is not initialised."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def refuse_shared(module: nn.Module, estimates_statistics: bool) -> None:
    """Raises an error if the processes would wait for each other in a call of the network."""
    if place()[1] == 1:
        return
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    for part in module.modules():
        if isinstance(part, (DistributedDataParallel, FullyShardedDataParallel)):
            raise TypeError(
                "Expected argument `module` to be a network that each process has whole but got"
                f" {type(part).__name__}. Of DistributedDataParallel, use `module.module`."
            )
        if estimates_statistics and isinstance(part, nn.SyncBatchNorm):
            raise TypeError(
                'Expected argument `module` to have no SyncBatchNorm with batch_norm="reestimate" in several processes,'
                ' each of which has points of its own. Use batch_norm="keep", or a single process.'
            )
    if any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        raise TypeError("Expected argument `module` to be a network that each process has whole but got shares of it.")


def decided_by_first(decide: Callable[[], Value]) -> Value:
    """What the first process found, for all of them; its error, too."""
    rank, world = place()
    if world == 1:
        return decide()
    found: list[Any] = [None, None]
    if rank == 0:
        try:
            found[0] = decide()
        except Exception as error:
            found[1] = error
    distributed.broadcast_object_list(found, src=0)
    if found[1] is not None:
        raise found[1]
    value: Value = found[0]
    return value


def gathered(work: Callable[[], Value]) -> list[Value]:
    """What each process has found, for all of them; an error of one is raised in all."""
    _, world = place()
    if world == 1:
        return [work()]
    value, own = None, None
    try:
        value = work()
    except Exception as error:
        own = error
    found: list[Any] = [None] * world
    distributed.all_gather_object(found, (value, None if own is None else f"{type(own).__name__}: {own}"))
    if own is not None:
        raise own
    for number, (_, message) in enumerate(found):
        if message is not None:
            raise RuntimeError(f"Process {number} failed, and with it this one: {message}")
    return [value for value, _ in found]
