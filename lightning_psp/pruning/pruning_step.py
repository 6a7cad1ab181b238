"""What a plateau of a training that prunes has brought."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PruningStep:
    """What was found at a plateau.

    Args:
        epoch: the epoch that the plateau ended in, from 0.
        threshold: T; weights with :math:`|w| < T` went. 0 where nothing more could be pruned.
        sparsity: share of the prunable weights that are 0 since then, from 0 to 1.
        loss_before: the monitored loss of the best weights.
        loss_after: the same once weights had gone.
        evaluations: how often the validation data were gone through.
    """

    epoch: int
    threshold: float
    sparsity: float
    loss_before: float
    loss_after: float
    evaluations: int
