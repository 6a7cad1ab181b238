"""What users are told, each thing once."""

from __future__ import annotations

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn


class OnceAFit:
    """Tells the user of each subject once, until it is made to forget.

    Example:
        >>> say = OnceAFit()
        >>> say.note("layers")
        >>> say("layers", "Layer 'fc' has no penalty.")  # a message on its layers was given
        >>> say.was_told("layers")
        True
    """

    def __init__(self) -> None:
        """Has told nothing."""
        self._told: set[str] = set()

    def __call__(self, subject: str, message: str, is_warning: bool = True) -> None:
        """Gives a message unless one on its subject was given."""
        if subject not in self._told:
            self._told.add(subject)
            (rank_zero_warn if is_warning else rank_zero_info)(message)

    def was_told(self, subject: str) -> bool:
        """Whether a message on the subject was given."""
        return subject in self._told

    def note(self, subject: str) -> None:
        """Takes a subject for told."""
        self._told.add(subject)

    def forget(self) -> None:
        """Starts anew."""
        self._told.clear()
