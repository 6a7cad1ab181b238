"""What a step or an evaluation has shown to be wrong."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from torch import Tensor

from lightning_psp.callback.watch import Watch
from lightning_psp.functional.totals import Total
from lightning_psp.lightnings import OnceAFit


def report_unseen_backward(say: OnceAFit) -> None:
    """Tells the user of a backward pass that Lightning did not announce."""
    say(
        "backward",
        "`training_step` calls `loss.backward()`, which no callback hears of: the penalty on potentials is missing from"
        " this backward pass. Call `self.manual_backward(loss)` instead.",
    )


def report_backward(say: OnceAFit, watch: Watch, has_entropy_term: bool) -> None:
    """Tells the user of a backward pass to which nothing was added."""
    if watch.lam > 0 and not watch.penalised_layers:
        say(
            "nothing",
            "A backward pass reached no potential between trained parameters and its loss: no penalty was added to it.",
        )
    if has_entropy_term and not watch.entropy_layers:
        say(
            "nothing",
            "A backward pass reached no potential of a hidden layer between trained parameters and its loss: no entropy"
            " term was added to it.",
        )


def report_unseen(say: OnceAFit, watch: Watch) -> None:
    """Tells the user of what lies between parameters and output and is no layer."""
    if watch.unseen:
        say("unseen", watch.unseen)


def report_broken(say: OnceAFit, layers: Mapping[str, Total], stage: str) -> None:
    """Tells the user of layers whose sum or mean of z² is no finite number."""
    broken = [layer for layer, value in layers.items() if not math.isfinite(_number(value))]
    if broken:
        # The layers behind the first take it over from it.
        say("broken", f"The potentials of layer {broken[0]!r} hold NaN or infinity ({stage}).")


def report_untrained(say: OnceAFit, evaluated: Collection[str], trained: Collection[str]) -> None:
    """Tells the user of layers of an evaluation that no training step has shown."""
    untrained = [layer for layer in evaluated if trained and layer not in trained]
    if untrained:
        say(
            "validation",
            f"Layers seen in validation, but by these names in no training step: {', '.join(untrained)}. Either"
            " training does not call them; or it calls another method than validation, where a nonlinearity of sums and"
            " the like has another name; or it calls them where nothing is seen: under `torch.no_grad()` or inside a"
            " `torch.autograd.Function`.",
        )


def _number(value: Total) -> float:
    return float(value) if isinstance(value, Tensor) else value
