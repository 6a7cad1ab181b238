"""What users are told of what could not be seen."""

from __future__ import annotations

from collections.abc import Mapping


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
