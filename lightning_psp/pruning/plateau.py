"""When a training has stopped to improve."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_utilities.core.rank_zero import rank_zero_warn

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


@dataclass
class Plateau:
    """Counts validations without a real improvement.

    Args:
        patience: number of such validations that make a plateau.
        min_improvement: the relative improvement that is one.
        best: the lowest loss.
        reference: the loss that has to be improved on.
        waited: validations since then.

    Example:
        >>> plateau = Plateau(patience=2, min_improvement=0.1)
        >>> [plateau.is_best(loss) for loss in (1.0, 0.95, 0.89, 0.9, float("nan"))]
        [True, True, True, False, False]
        >>> plateau.is_reached, plateau.waited
        (True, 2)
    """

    patience: int
    min_improvement: float
    best: float = math.inf
    reference: float = math.inf
    waited: int = 0

    def is_best(self, loss: float) -> bool:
        """Counts a validation and tells whether its loss is the lowest."""
        # The reference stays where improvements are small: many of them together are a real one.
        if loss < self.reference - self.min_improvement * abs(self.reference) or self.reference == math.inf > loss:
            self.reference, self.waited = loss, 0
        else:
            self.waited += 1
        if not loss < self.best:
            return False
        self.best = loss
        return True

    @property
    def is_reached(self) -> bool:
        """Whether this is a plateau."""
        return self.waited >= self.patience

    def restart(self, loss: float) -> None:
        """Counts anew, from weights with this loss."""
        self.best = self.reference = loss
        self.waited = 0

    @property
    def validations_needed(self) -> int:
        """How many more there are at least before this is a plateau: the first one of all only has a loss."""
        return self.patience - self.waited + (self.reference == math.inf)


def warn_of_no_plateau(plateau: Plateau, trainer: Trainer) -> None:
    """Warns where a fit is certain to end before the next plateau."""
    every, epochs = trainer.check_val_every_n_epoch, trainer.max_epochs
    has_one_at_most = trainer.val_check_interval == 1.0 and isinstance(trainer.val_check_interval, float)
    if every is None or epochs is None or epochs < 0 or not has_one_at_most:
        return
    left = epochs // every - trainer.current_epoch // every
    if left < plateau.validations_needed and not trainer.should_stop:
        rank_zero_warn(
            f"LobsterPruning(patience={plateau.patience}) prunes nothing in this fit: to find a plateau it needs"
            f" {plateau.validations_needed} validations or more, and Trainer(max_epochs={epochs}) makes {left}. Train"
            " for more epochs, or give a smaller `patience`."
        )
