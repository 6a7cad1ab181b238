"""What users are told, each thing once."""

from __future__ import annotations

from collections.abc import Mapping

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


def unseen_message(unseen: Mapping[str, str], sees_output_alone: bool) -> str:
    """What to tell of functions that no potential accounts for, and of networks that show none but their output.

    Args:
        unseen: where such a function is called, and what to name for it.
        sees_output_alone: whether a network of several layers shows none but its output.

    Example:
        >>> unseen_message({"block.exp": "'torch.exp'"}, False)
        "No layer was found for block.exp. If that is a nonlinearity, name it: activations=('torch.exp',)."
    """
    sentences = []
    if sees_output_alone:
        sentences.append("Of a network of several layers, only the output was found.")
    if unseen:
        names = ", ".join(sorted(set(unseen.values())))
        sentences.append(f"No layer was found for {', '.join(unseen)}.")
        sentences.append(f"If that is a nonlinearity, name it: activations=({names},).")
    elif sees_output_alone:
        sentences.append("If it has nonlinearities, name their module classes or torch functions: activations=(…,).")
    return " ".join(sentences)
