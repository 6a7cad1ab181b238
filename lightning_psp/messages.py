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


def unseen_message(unseen: Mapping[str, str], *, sees_output_alone: bool, lacks_output: bool) -> str:
    """What to tell of a network that could not be seen whole; empty where there is nothing to tell.

    Args:
        unseen: where a function is called that no potential accounts for, and what to name for it.
        sees_output_alone: whether a network of several layers shows none but its output.
        lacks_output: whether there is a loss, and nothing was found where it begins.

    Example:
        >>> unseen_message({"block.exp": "'torch.exp'"}, sees_output_alone=False, lacks_output=False)
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
    if lacks_output:
        sentences.append(
            "No output layer was found: the network returns no tensor that the loss is computed from, and its loss is"
            " none of torch's functions. Have `forward` return the prediction, in a tuple, dict or dataclass."
        )
    return " ".join(sentences)
