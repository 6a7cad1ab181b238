"""What an epoch of training has shown to be left out."""

from __future__ import annotations

from collections.abc import Callable

from lightning_psp.callback.watch import Watch
from lightning_psp.lightnings import OnceAFit


def report_epoch(say: OnceAFit, watch: Watch, layer_factor: Callable[[str], float]) -> None:
    """Tells the user of it.

    Args:
        say: tells it.
        watch: has watched the epoch.
        layer_factor: gives a layer's factor on λ.
    """
    if watch.unsampled:
        say(
            "samples",
            "PSPCallback(histograms=True) writes no histogram of potentials inside functions made by"
            f" `torch.compile`: {', '.join(watch.unsampled)}. Train without `torch.compile` to see them.",
        )
    if watch.left_out:
        say(
            "kinds",
            "Complex, sparse and nested tensors are not penalised. Such tensors enter the nonlinearities of"
            f" {', '.join(watch.left_out)}. Name them in `exclude` to leave them out without this warning.",
        )
    if watch.adds_gradients and not (watch.penalised_layers or watch.entropy_layers):
        say(
            "nothing",
            "No penalty was added in this epoch. With manual optimisation, call `self.manual_backward(loss)`: no"
            " callback hears of `torch.autograd.backward` and `torch.autograd.grad`.",
        )
    elif watch.lam > 0:
        left_out = [
            layer for layer in watch.chosen_layers if layer not in watch.penalised_layers and layer_factor(layer) != 0.0
        ]
        if left_out:
            say(
                "left out",
                "Layers without a penalty, because they lie on no path from trained parameters to a loss:"
                f" {', '.join(left_out)}.",
                is_warning=False,
            )
