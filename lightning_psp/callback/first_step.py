"""What the callback says of itself after the first step of a training."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from lightning_psp.callback.auto_lam import EVERY, SHARE
from lightning_psp.callback.step import Step

# Shares of the penalty in the loss below which, should it stay there, it does next to nothing, and above which it comes
# before the loss. It grows in training: with the first paper's λ, LeNet-5 on MNIST goes from 0.007 % to 280 %.
NEGLIGIBLE, DOMINANT = 0.001, 1.0
_MOST_IN_PER_CENT = 100.0

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def describe_first_step(step: Step, layers: Sequence[str], lam: float, module: nn.Module, is_auto: bool) -> str:
    """Says what is penalised and how much of the loss that is, and what to do where it is very little or very much.

    Args:
        step: the step.
        layers: the layers chosen.
        lam: λ, which a schedule may have made smaller in this step.
        module: the user's module, which layers are named relative to.
        is_auto: whether λ was found in training, and follows it.
    """
    sentences = [_beginning(step, len(layers), lam, is_auto)]
    means = {layer: float(total) / elements for layer, (total, elements) in step.sums.items()}
    largest = max(means, key=lambda layer: means[layer])
    sentences.append(f"⟨z²⟩ is largest in {largest!r}: {means[largest]:.3g}, of the network {_mean(means):.3g}.")
    share = float(step.penalty_share)
    if step.lam == 0.0 or not math.isfinite(share):
        return " ".join(sentences)
    sentences.append(f"The penalty is {share_of_loss(share)}.")
    if is_auto:
        return " ".join(sentences)
    at_full_strength = share * lam / step.lam
    if at_full_strength < NEGLIGIBLE:
        sentences.append(
            f"Where `psp/penalty_share`, which grows while the loss falls, stays below {100 * NEGLIGIBLE:g} %, the"
            " penalty changes next to nothing: try a larger λ then."
        )
        normalised = [layer for layer in layers if is_batch_norm(module, layer)]
        if 2 * len(normalised) >= len(layers):
            sentences.append(
                f"{len(normalised)} of the layers are what batch norm gives: there ⟨z²⟩ starts at 1, whatever the"
                " weights before it are, and λ acts on the weight and bias of the batch norm alone."
            )
    elif at_full_strength > DOMINANT:
        sentences.append(
            f"Above {100 * DOMINANT:g} % it comes before the loss: try a smaller λ, unless the network had learnt"
            " before, where the loss is small and such a share is usual."
        )
    return " ".join(sentences)


def _beginning(step: Step, number: int, lam: float, is_auto: bool) -> str:
    layers = counted_layers(number)
    if lam == 0.0:
        return f"PSPCallback watches {layers} and penalises none, for λ = 0."
    digits = ".3g" if is_auto else "g"
    of_full = "" if math.isclose(step.lam, lam) else f" in this step, of {lam:{digits}}"
    beginning = f"PSPCallback penalises {layers} with λ = {step.lam:{digits}}{of_full}"
    if is_auto:
        beginning += f" (auto: its gradient has {SHARE:g} of the norm of the loss's, measured every {EVERY} steps)"
    return f"{beginning}."


def counted_layers(number: int) -> str:
    """A number of layers, for a reader."""
    return "1 layer" if number == 1 else f"{number} layers"


def _mean(means: dict[str, float]) -> float:
    return sum(means.values()) / len(means)


def share_of_loss(share: float) -> str:
    """A share of the loss as it is read.

    Example:
        >>> share_of_loss(0.000615), share_of_loss(1.0), share_of_loss(34.5), share_of_loss(241234.0)
        ('0.061 % of the loss', '100 % of the loss', '3450 % of the loss', '240,000 times the loss')
    """
    if abs(share) >= _MOST_IN_PER_CENT:
        return f"{float(f'{share:.2g}'):,.0f} times the loss"
    return f"{100 * share:{'.0f' if share >= 1 else '.2g'}} % of the loss"


def is_batch_norm(module: nn.Module, layer: str) -> bool:
    """Whether a layer's potentials are what a batch norm gives."""
    found: nn.Module | None = module
    for name in layer.split("."):
        found = None if found is None else dict(found.named_children()).get(name)
    return isinstance(found, _BATCH_NORMS)
