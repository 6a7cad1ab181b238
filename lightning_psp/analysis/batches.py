"""Batches of data: how many samples one has, what of it is the network's input, and what its loss is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from lightning_psp.functional.arguments import remedy_for_batch

_LEFT_OUT = -100  # the label by which torch's cross entropy leaves a sample out of its mean

_OTHER_LOSS = " For other batches give argument `loss`; errors and entropies need such a pair."

# Gives the loss of a batch, a scalar: the mean over its samples.
Loss: TypeAlias = Callable[[Any, Any], Tensor]


def cross_entropy(module: nn.Module, batch: Any) -> Tensor:
    """The loss where none is given: that of ``module(batch[0])`` and the classes ``batch[1]``."""
    labels = labels_of(batch)
    scores = module(input_of(batch))
    if not isinstance(scores, Tensor):
        raise TypeError(
            "Expected argument `module` to return a tensor of scores [batch, classes, …] but got"
            f" {type(scores).__name__}. Take them out of it in a function of your own, the argument `loss`."
        )
    if (labels == _LEFT_OUT).any():
        raise ValueError(
            f"Expected a class for each sample but got some of {_LEFT_OUT}, which cross entropy leaves out of its mean,"
            " so that batches would not weigh as much as their samples. Leave these samples out of argument `data`, or"
            " give an argument `loss` that is the mean over all samples of a batch."
        )
    loss: Tensor = functional.cross_entropy(scores, labels)
    return loss


def check_loss(loss: Any) -> None:
    """Raises an error unless a loss can be called, and is no loss of torch, which takes predictions and targets."""
    name, home = getattr(loss, "__name__", type(loss).__name__), getattr(loss, "__module__", "")
    if home in ("torch.nn.functional", "torch.nn.modules.loss"):
        raise TypeError(
            "Expected argument `loss` to be a function of the network and a batch, such as `lambda network, batch:"
            f" f(network(batch[0]), batch[1])`, but got {name}, which can be this f."
        )
    if not callable(loss):
        raise TypeError(
            f"Expected argument `loss` to be a function of the network and a batch but got {type(loss).__name__}."
        )


def device_of(module: nn.Module) -> torch.device | None:
    """The device of a network's first parameter or buffer; None if it has neither."""
    return next((tensor.device for tensors in (module.parameters(), module.buffers()) for tensor in tensors), None)


def moved(batch: Any, device: torch.device | None) -> Any:
    """A batch with its tensors on a device; as it is where the device is None."""
    if device is None:
        return batch
    return apply_to_collection(batch, dtype=Tensor, function=lambda tensor: tensor.to(device, non_blocking=True))


def input_of(batch: Any) -> Any:
    """The first item of a batch, which the network is called with.

    Raises:
        TypeError: if the batch is no tuple or list.
    """
    if not isinstance(batch, (tuple, list)) or not batch:
        raise TypeError(
            "Expected a batch of argument `data` to be a tuple or list whose first item is the network's input, such as"
            f" (images, labels), but got {type(batch).__name__}.{remedy_for_batch(batch)}"
        )
    return batch[0]


def labels_of(batch: Any) -> Tensor:
    """The second item of a batch, the classes of its samples.

    Raises:
        TypeError: if the batch is no tuple or list of two or more, or the second item no tensor.
    """
    is_pair = isinstance(batch, (tuple, list)) and len(batch) > 1
    if not is_pair or not isinstance(batch[1], Tensor):
        found = str([type(each).__name__ for each in batch]) if is_pair else type(batch).__name__
        if isinstance(batch, (tuple, list)) and len(batch) == 1:
            found = f"a {found} of one item"
        remedy = _OTHER_LOSS if isinstance(batch, Mapping) else remedy_for_batch(batch)
        raise TypeError(
            "Expected a batch of argument `data` to be a tuple or list whose second item holds the classes of its"
            f" samples, such as (images, labels), but got {found}.{remedy}"
        )
    return batch[1]


def samples_in(batch: Any) -> int:
    """The number of samples of a batch.

    That is the length of its second item where this has one dimension, as class labels have: inputs may begin with
    another, such as time. Otherwise it is that of the first tensor, or the number of packed sequences.

    Raises:
        TypeError: if there is no tensor.

    Example:
        >>> samples_in((torch.zeros(7, 2, 3), torch.tensor([4, 1]))), samples_in((torch.zeros(7, 2, 3),))
        (2, 7)
    """
    first = next(_leaves(batch), None)
    if isinstance(batch, (tuple, list)) and batch is not first and len(batch) > 1:
        labels = batch[1]
        if isinstance(labels, Tensor) and labels.ndim == 1:
            return len(labels)
    if isinstance(first, PackedSequence):
        return int(first.batch_sizes[0])
    if first is None or first.ndim == 0:
        raise TypeError(
            "Expected a batch of argument `data` to hold tensors [batch, …] in tuples, lists and mappings but got"
            f" {type(batch).__name__}."
        )
    return len(first)


@dataclass(frozen=True, eq=False)
class Survey:
    """What is in the data.

    Args:
        samples: the number of samples.
        classes: the class labels that there are, in ascending order; None where they were not asked for.
        first_tensors: the tensors of the first batch.
    """

    samples: int
    classes: Tensor | None
    first_tensors: list[Tensor]


def survey(data: Iterable[Any], takes_classes: bool) -> Survey:
    """Goes through the data once, without a network.

    Args:
        data: the batches.
        takes_classes: whether every batch has class labels ``[batch]``.

    Raises:
        TypeError: if a batch is none, or class labels are no integers.
        ValueError: if there is no sample, or class labels are not ``[batch]``.

    Example:
        >>> found = survey([(torch.zeros(2, 3), torch.tensor([4, 1])), (torch.zeros(1, 3), torch.tensor([4]))], True)
        >>> found.samples, found.classes
        (3, tensor([1, 4]))
    """
    samples, first, classes = 0, None, set()
    for batch in data:
        samples += samples_in(batch)
        if first is None:
            first = [
                tensor
                for leaf in _leaves(batch)
                for tensor in ([leaf] if isinstance(leaf, Tensor) else [leaf.data, leaf.batch_sizes])
            ]
        if takes_classes:
            classes.update(_class_labels(batch).tolist())
    if first is None or samples == 0:
        raise ValueError("Expected argument `data` to give at least one batch with samples but got none.")
    return Survey(samples, torch.tensor(sorted(classes), device="cpu") if takes_classes else None, first)


def _class_labels(batch: Any) -> Tensor:
    labels = labels_of(batch)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(
            f"Expected class labels to be integers for an entropy but got {labels.dtype}. Leave the entropies out of"
            " argument `measures`."
        )
    if (labels == _LEFT_OUT).any():
        raise ValueError(
            f"Expected a class for each sample for an entropy but got some of {_LEFT_OUT}, which means none. Leave"
            " these samples out of argument `data`, or the entropies out of argument `measures`."
        )
    samples = samples_in(batch)
    if labels.shape != (samples,):
        raise ValueError(
            f"Expected class labels [{samples}], one a sample, for an entropy but got {[*labels.shape]}. Leave the"
            " entropies out of argument `measures`."
        )
    return labels


def _leaves(batch: Any) -> Iterator[Tensor | PackedSequence]:
    """The tensors and packed sequences of a batch, in order."""
    if isinstance(batch, (Tensor, PackedSequence)):
        yield batch
    elif isinstance(batch, (tuple, list, Mapping)):
        for each in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _leaves(each)
