"""λ that gives the penalty's gradient a share of the norm of the loss's."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, Literal, TypeAlias

from torch import Tensor

from lightning_psp.functional.arguments import check_number

Lam: TypeAlias = float | Literal["auto"]

# The share that served on the tasks of `examples/lambda_study.py`, the optimiser steps between measurements, and the
# part that a running mean keeps of the measurements before, for the gradients of single batches differ.
SHARE, EVERY, KEPT = 0.3, 10, 0.9
# In half precision the gradient of R itself may overflow. Then a smaller part of R is measured in the next step.
_SMALLER = 2.0**-10


def check_lam(lam: Any) -> None:
    """Raises an error unless λ is a number of at least 0, or asked to be found.

    Example:
        >>> check_lam("big")
        Traceback (most recent call last):
        ...
        ValueError: Expected argument `lam` to be a number of at least 0 or 'auto' but got 'big'.
    """
    wanted = "Expected argument `lam` to be a number of at least 0 or 'auto' but got"
    if isinstance(lam, str) and lam != "auto":
        raise ValueError(f"{wanted} {lam!r}.")
    if isinstance(lam, bool) or not isinstance(lam, (str, Real)):
        hint = " Of a tensor with one number, give `lam.item()`." if isinstance(lam, Tensor) else ""
        raise TypeError(f"{wanted} {lam!r}.{hint}")
    if not isinstance(lam, str):
        check_number("lam", lam, at_least=0)


class LamAttribute:
    """λ as an attribute that is checked whenever it is set, be it in the middle of a training.

    Example:
        >>> class Penalty:
        ...     lam = LamAttribute()
        >>> penalty = Penalty()
        >>> penalty.lam = 1
        >>> penalty.lam
        1.0
        >>> penalty.lam = -1
        Traceback (most recent call last):
        ...
        ValueError: Expected argument `lam` to be a finite number of at least 0 but got -1.
    """

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else vars(instance)["lam"]

    def __set__(self, instance: Any, lam: Lam) -> None:
        check_lam(lam)
        vars(instance)["lam"] = lam if isinstance(lam, str) else float(lam)


class AutoLam:
    r"""The ratio of running means of both norms, :math:`\lambda = 0.3 \, m_L / m_R`.

    With each measurement m becomes :math:`0.9 \, m + 0.1 \, \|\nabla\|`; the first one is taken as it is. A measurement
    with a norm that is 0 or no finite number says nothing of the ratio and is left out.

    Example:
        >>> auto = AutoLam()
        >>> auto.lam, auto.is_due(step=0)
        (0.0, True)
        >>> auto.add(step=0, of_loss=2.0, of_penalty=4.0)
        >>> auto.lam, auto.is_due(step=1), auto.is_due(step=10)
        (0.15, False, True)
        >>> auto.add(step=10, of_loss=1.0, of_penalty=4.0)
        >>> round(auto.lam, 4)  # 0.3 · 1.9 / 4
        0.1425
    """

    def __init__(self) -> None:
        """Nothing is measured yet."""
        self.probe = 1.0  # λ with which the gradient of λR is to be taken; the norm given to `add` is divided by it
        self._means: tuple[float, float] | None = None
        self._step: int | None = None  # the optimiser step of the last measurement

    @property
    def has_measured(self) -> bool:
        """Whether there is a λ."""
        return self._means is not None

    @property
    def lam(self) -> float:
        """λ, 0 before the first measurement."""
        return 0.0 if self._means is None else SHARE * self._means[0] / self._means[1]

    def is_due(self, step: int) -> bool:
        """Whether to measure in this optimiser step: in the first one, and in those whose number is a multiple of 10.

        Of several backward passes of one step (accumulated batches, a closure that runs again) the first one counts.
        """
        return step != self._step and (self._means is None or step % EVERY == 0)

    def add(self, step: int, of_loss: float, of_penalty: float) -> None:
        """Takes in the norms of the gradients of loss and R, measured in an optimiser step."""
        self._step = step
        norms = (of_loss, of_penalty)
        if all(0.0 < norm < math.inf for norm in norms):
            before = norms if self._means is None else self._means
            of_loss, of_penalty = (KEPT * old + (1.0 - KEPT) * new for old, new in zip(before, norms, strict=True))
            self._means = of_loss, of_penalty
            self.probe = self.lam
        elif math.isfinite(of_loss) and not math.isfinite(of_penalty):
            self.probe *= _SMALLER

    def state(self) -> dict[str, Any]:
        """What a resumed training needs."""
        return {"means": self._means, "step": self._step, "probe": self.probe}

    def load(self, state: dict[str, Any]) -> None:
        """Takes up a training where a checkpoint left it."""
        self._means, self._step, self.probe = state["means"], state["step"], state["probe"]
