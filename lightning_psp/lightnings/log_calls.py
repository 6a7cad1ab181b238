"""Lightning's own `log`, inside which no function has to be followed: it keeps values and gives none back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

import torch

from lightning_psp.capture.mode import Capture
from lightning_psp.lightnings.any_callback import LIGHTNINGS
from lightning_psp.torch_private.function_modes import innermost_taken_off

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

_is_traced = torch.compiler.is_dynamo_compiling
_watches: Counter[type] = Counter()  # for how many the `log` of a Lightning's class runs unwatched
_unwatched_logs: dict[type, Any] = {}  # what was put in its place


def leave_log_unwatched(module: LightningModule) -> Callable[[], None]:
    """Has the `log` that Lightning's class gives a module run without being told of functions.

    Each value that is logged takes many calls of functions. The class is changed once for all steps: to change it in
    each would have Python forget what it knows of the class.

    Args:
        module: the user's module, which stays as it is.

    Returns:
        Ends it.
    """
    classes = (cls for cls in type(module).__mro__ if cls.__module__.startswith(LIGHTNINGS))
    owner: Any = next((cls for cls in classes if "log" in vars(cls)), None)
    if owner is None:
        return lambda: None
    if not _watches[owner]:
        owner.log = _unwatched_logs[owner] = _unwatched(vars(owner)["log"])
    _watches[owner] += 1
    has_ended = False

    def end() -> None:
        nonlocal has_ended
        if not has_ended:
            has_ended = True
            _watches[owner] -= 1
            # What another package has put around it meanwhile stays, with it.
            if not _watches[owner] and vars(owner)["log"] is _unwatched_logs[owner]:
                owner.log = _unwatched_logs.pop(owner).__wrapped__

    return end


@cache  # code that is compiled with one is compiled anew for another
def _unwatched(log: Callable[..., None]) -> Callable[..., None]:
    @wraps(log)
    def log_unwatched(self: LightningModule, *args: Any, **kwargs: Any) -> None:
        if _is_traced():
            return log(self, *args, **kwargs)
        with innermost_taken_off(Capture):
            return log(self, *args, **kwargs)

    return log_unwatched
