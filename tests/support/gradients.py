"""Gradients compared with those of the reference, and a training whose loss is scaled."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeAlias

import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from tests.support.cases import Case
from tests.support.reference import Reduction, norm, reference_step

Gradients: TypeAlias = Callable[[Case, Reduction, float], dict[str, Tensor]]


def assert_equal_gradients(found, expected, tolerance: float) -> None:
    length = norm(expected)
    difference = {name: found[name].double() - g for name, g in expected.items()}
    assert norm(difference) <= tolerance * length
    for name, g in expected.items():
        # a bias before a batch norm has a gradient of nothing but rounding
        scale = max(g.norm().item(), 1e-4 * length.item())
        assert difference[name].norm() <= tolerance * scale, name


def assert_matters(step, lam: float) -> None:
    """Without the penalty the test would fail."""
    gradients = step.gradients(lam)
    missing = {name: g - step.loss_gradients[name] for name, g in gradients.items()}
    assert norm(missing) > 1e-3 * norm(gradients)


def assert_exact_or_refused(case: Case, reduction: Reduction, gradients: Gradients) -> None:
    """Gradients of what is hard to see are those of the reference, or an error says so in the words of the case."""
    network, (batch,) = case.build()
    step = reference_step(network, case.loss, batch, reduction, case.output_layer)
    lam = step.balanced_lam()
    refusal = ""
    try:
        found = gradients(case, reduction, lam)
    except RuntimeError as error:
        refusal = str(error)
    if refusal:
        assert case.refusal in refusal
    else:
        assert_equal_gradients(found, step.gradients(lam), 1e-8)


class ScaledLoss(MixedPrecision):
    """The scaled loss of fp16 training without its rounding, so that errors show."""

    def __init__(self, autocast: bool) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
        super().__init__("16-mixed", "cpu", scaler=scaler)
        self.autocast = autocast

    def forward_context(self):
        return super().forward_context() if self.autocast else nullcontext()
