"""What a step, an epoch or an evaluation has shown to be wrong or left out."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from torch import nn

from lightning_psp.callback.first_step import counted_layers, describe_first_step, share_of_loss
from lightning_psp.callback.settings import Settings
from lightning_psp.callback.step import Additions, Seen, Step
from lightning_psp.functional.totals import Total
from lightning_psp.lightnings import OnceAFit

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

# Share of the penalty in the loss from which on it may be what lets a training diverge.
_LARGE = 0.1


class Reports:
    """Tells the user, each thing once a fit, what steps, epochs and evaluations have shown.

    Args:
        say: tells it, and keeps what was looked at.
        settings: what the user asked for.
    """

    def __init__(self, say: OnceAFit, settings: Settings) -> None:
        self._say = say
        self._settings = settings
        self._largest_share = 0.0  # of the penalty in the loss, in steps that were read
        self._lam = 0.0  # of that step

    def start(self) -> None:
        """Starts a new fit."""
        self._say.forget()
        self._largest_share = self._lam = 0.0

    @property
    def has_checked_layers(self) -> bool:
        """Whether :meth:`check_layers` has nothing more to look at."""
        return self._say.was_told("layers") and self._say.was_told("chosen")

    @property
    def has_told_of_first_step(self) -> bool:
        """Whether :meth:`tell_of_first_step` has nothing more to tell."""
        return self._say.was_told("first step")

    def check_layers(self, seen: Seen, has_seen_all: bool = True) -> None:
        """Raises a ValueError, unless that was looked at before, where layers are not those that the user chose.

        Args:
            seen: what steps have shown.
            has_seen_all: whether these are all of the network's layers.
        """
        selection, layers = self._settings.selection, {**seen.layers, **seen.fused}
        if not self._say.was_told("layers"):
            if not layers and seen.saw_empty_batch:
                raise ValueError(
                    "No potential was found: the batches that the network was called with have no samples."
                )
            selection.check(layers, self._settings.layer_factor.by_pattern)
            self._say.note("layers")
        if has_seen_all and not self._say.was_told("chosen"):
            selection.check_chosen(layers, {**seen.chosen, **seen.left_out, **seen.fused})
            self._say.note("chosen")

    def tell_of_unseen_backward(self, module: LightningModule) -> None:
        """Tells of a backward pass that Lightning did not announce."""
        message = (
            "`training_step` calls `loss.backward()` or `torch.autograd.backward(loss)`, which no callback hears of:"
            " the penalty on potentials is missing from this backward pass."
        )
        if module.automatic_optimization:  # an attack, say
            message += (
                " Automatic optimisation drops its gradients of parameters (in the first batch that a step of the"
                " optimiser takes) and runs a backward pass of its own, which has the penalty. If you step an optimiser"
                " yourself, set `self.automatic_optimization = False` and call `self.manual_backward(loss)` instead."
            )
        else:
            message += " Call `self.manual_backward(loss)` instead."
        self._say("backward", message)

    def tell_of_backward(self, additions: Additions, seen: Seen, lam: float) -> None:
        """Tells of a backward pass to which nothing was added, or not all that should be.

        Args:
            additions: what is added.
            seen: what steps have shown.
            lam: λ.
        """
        if additions.missed:
            self._say(
                "earlier step",
                "A backward pass reached potentials of a training step that had ended, which have no penalty in it:"
                f" {', '.join(additions.missed)}. Call the network, and `backward` or `self.manual_backward`, within"
                " one `training_step`.",
            )
        elif additions.is_outside and not (additions.penalised or additions.with_entropy):
            self._say(
                "outside",
                "`self.manual_backward` was called outside `training_step`, where no potentials are seen: no penalty"
                " was added to it. Call the network and `self.manual_backward` within `training_step`.",
            )
        elif not additions.saw_empty_batch:
            self._tell_of_nothing(seen, lam)

    def _tell_of_nothing(self, seen: Seen, lam: float) -> None:
        if lam > 0 and not seen.penalised:
            if seen.chosen and not any(map(self._settings.layer_factor, seen.chosen)):
                number = counted_layers(len(seen.chosen))
                message = f"PSPCallback watches {number} and penalises none, for `layer_lam` gives each the factor 0."
                self._say("nothing", message, is_warning=False)
            else:
                self._say(
                    "nothing",
                    "A backward pass reached no potential between trained parameters and its loss: no penalty was added"
                    " to it.",
                )
        if self._settings.has_entropy_term and not seen.with_entropy:
            self._say(
                "nothing",
                "A backward pass reached no potential of a hidden layer between trained parameters and its loss: no"
                " entropy term was added to it.",
            )

    def tell_of_unseen(self, step: Step) -> None:
        """Tells of what lies between parameters and output and is no layer."""
        if step.unseen:
            self._say("unseen", step.unseen)

    def tell_of_first_step(self, step: Step, seen: Seen, lam: float, module: nn.Module, is_auto: bool) -> None:
        """Tells what the callback does, once; with a schedule that starts at 0, when λ is above it.

        Args:
            step: the training step.
            seen: what steps have shown up to now.
            lam: λ before the schedule's factor.
            module: the user's module.
            is_auto: whether λ was found in training.
        """
        is_penalised = (lam == 0.0 and not is_auto) or (step.lam > 0.0 and bool(seen.penalised))
        if step.sums and is_penalised:
            layers = [*seen.penalised] if lam > 0.0 else [*seen.chosen]
            self._say("first step", describe_first_step(step, layers, lam, module, is_auto), is_warning=False)
            self._note_share(step)

    def tell_of_step(self, step: Step, mean: Total) -> None:
        """Tells of layers whose sum of z² in a training step is no finite number.

        Args:
            step: the step.
            mean: ⟨z²⟩ of the network in it.
        """
        if math.isfinite(mean):
            self._note_share(step)
        else:
            self.tell_of_broken({layer: total for layer, (total, _) in step.sums.items()}, "training")

    def tell_of_broken(self, layers: Mapping[str, Total], stage: str) -> None:
        """Tells of layers whose sum or mean of z² is no finite number."""
        broken = [layer for layer, value in layers.items() if not math.isfinite(value)]
        if broken:
            # The layers behind the first take it over from it.
            message = f"The potentials of layer {broken[0]!r} hold NaN or infinity ({stage})."
            if self._largest_share >= _LARGE:
                message += (
                    f" With λ = {self._lam:g} the penalty was up to {share_of_loss(self._largest_share)} before: λ may"
                    " be too large."
                )
            self._say("broken", message)

    def _note_share(self, step: Step) -> None:
        share = float(step.penalty_share)
        if math.isfinite(share) and share >= self._largest_share:
            self._largest_share, self._lam = share, step.lam

    def tell_of_epoch(self, seen: Seen, lacks_lam: bool) -> None:
        """Tells of what the steps of an epoch of training have shown to be left out.

        Args:
            seen: what steps have shown.
            lacks_lam: whether λ was to be found in training and was not.
        """
        if seen.unsampled:
            self._say(
                "samples",
                "PSPCallback(histograms=True) writes no histogram of potentials inside functions made by"
                f" `torch.compile`: {', '.join(seen.unsampled)}. Train without `torch.compile` to see them.",
            )
        if seen.left_out:
            self._say(
                "kinds",
                "Complex, sparse and nested tensors are not penalised. Such tensors enter the nonlinearities of"
                f" {', '.join(seen.left_out)}. Name them in `exclude` to leave them out without this warning.",
            )
        if lacks_lam:
            self._say(
                "lacks λ",
                "PSPCallback(lam='auto') has added no penalty: in every step the gradient of the loss or that of the"
                " penalty by the trained parameters was 0, NaN or infinite. Look at the loss, at `requires_grad` and at"
                " the layers, or give a number for `lam`.",
            )
        if seen.chosen and seen.lam == 0.0 and not (self.has_told_of_first_step or lacks_lam):
            self._say(
                "no λ yet",
                f"PSPCallback watches {counted_layers(len(seen.chosen))} and has penalised none, for the schedule's"
                " factor on λ was 0 up to now.",
                is_warning=False,
            )
        adds_gradients = seen.lam != 0.0 or self._settings.has_entropy_term
        if adds_gradients and not (seen.penalised or seen.with_entropy):
            if not any(map(self._say.was_told, ("backward", "earlier step", "outside"))):
                self._say(
                    "nothing",
                    "No penalty was added in this epoch. With manual optimisation, call `self.manual_backward(loss)`:"
                    " no callback hears of `torch.autograd.grad`.",
                )
        elif seen.lam > 0:
            factor = self._settings.layer_factor
            left_out = [layer for layer in seen.chosen if layer not in seen.penalised and factor(layer) != 0.0]
            if left_out:
                self._say(
                    "left out",
                    "Layers without a penalty, because they lie on no path from trained parameters to a loss:"
                    f" {', '.join(left_out)}.",
                    is_warning=False,
                )

    def tell_of_untrained(self, evaluated: Collection[str], trained: Collection[str]) -> None:
        """Tells of layers of an evaluation that no training step has shown."""
        untrained = [layer for layer in evaluated if trained and layer not in trained]
        if untrained:
            self._say(
                "validation",
                f"Layers seen in validation, but by these names in no training step: {', '.join(untrained)}. Either"
                " training does not call them; or it calls another method than validation, where a nonlinearity of"
                " sums and the like has another name; or it calls them where nothing is seen: under `torch.no_grad()`"
                " or inside a `torch.autograd.Function`. They count in the values of the network, such as `psp/z2_val`:"
                " name those in `exclude` that are not to, such as a teacher's.",
            )
