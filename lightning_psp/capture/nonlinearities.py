"""Which functions are nonlinearities, and what each of them means for finding potentials.

A forward pass is watched as a sequence of calls of torch functions. This module says which of these
functions take a potential as their first argument, under which name a reader knows them, and which
of them overwrite it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.overrides import resolve_name

from lightning_psp.capture.functions import NAMESPACES, TorchFunction, all_forms_of, forms_of
from lightning_psp.torch_private.functions import operators_of

# Every pointwise nonlinearity of torch, and the gated linear unit. Softmax is none of them (attention
# weights are no neurons), and neither is clamp (it guards losses and builds hard sigmoids).
_HIDDEN = (
    "celu elu expit gelu glu hardshrink hardsigmoid hardswish hardtanh leaky_relu log_sigmoid"
    " logsigmoid mish prelu relu relu6 rrelu selu sigmoid silu softplus softshrink softsign tanh"
    " tanhshrink threshold"
)

# Functions through which logits enter a loss, or leave the network for one.
_OUTPUT = (
    "cross_entropy cross_entropy_loss binary_cross_entropy_with_logits multilabel_soft_margin_loss soft_margin_loss"
)

# Losses of the network's output as it is, which may be their first or their second argument.
_DIRECT_LOSS = (
    "cosine_embedding_loss cosine_similarity gaussian_nll_loss hinge_embedding_loss huber_loss l1_loss"
    " margin_ranking_loss mse_loss multi_margin_loss multilabel_margin_loss pairwise_distance poisson_nll_loss"
    " smooth_l1_loss"
)

# Losses of what a softmax or sigmoid gave.
_PROBABILITY_LOSS = "binary_cross_entropy ctc_loss kl_div nll_loss nll_loss_nd"

# The gates inside these kernels can be computed once more from what goes in and comes out.
_RECURRENT = "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"

# Potentials inside these kernels are out of reach of a watcher of function calls.
_FUSED = "linear_cross_entropy quantized_lstm quantized_gru"
_FUSED_OPERATORS = tuple(f"quantized_{cell}_cell_dynamic" for cell in ("lstm", "gru", "rnn_tanh", "rnn_relu"))

_LABELS = {"expit": "sigmoid", "log_sigmoid": "logsigmoid"}


@dataclass(frozen=True)
class Activation:
    """How a nonlinearity is called: its name for the reader, and whether it overwrites its input.

    Args:
        label: the name.
        in_place_position: position of the argument `inplace`, if the function has one.
        counterpart: for a function that always overwrites its input, the one that does not.
    """

    label: str
    in_place_position: int | None
    counterpart: TorchFunction | None

    def overwrites(self, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Whether this call replaces the potential by the nonlinearity's result."""
        if self.counterpart is not None:
            return True
        position = self.in_place_position
        if position is None:
            return False
        return bool(args[position]) if len(args) > position else bool(kwargs.get("inplace", False))

    def out_of_place(self, func: TorchFunction, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The result of this call if it did not overwrite its input."""
        if self.counterpart is not None:
            return self.counterpart(*args, **kwargs)
        position = self.in_place_position
        assert position is not None
        if len(args) > position:
            return func(*args[:position], False, *args[position + 1 :], **kwargs)
        return func(*args, **{**kwargs, "inplace": False})


@dataclass(frozen=True, eq=False)
class Nonlinearities:
    """The functions and module classes that a search for potentials reacts to."""

    hidden: dict[TorchFunction, Activation]
    output: dict[TorchFunction, str]
    direct_losses: frozenset[TorchFunction]
    probability_losses: frozenset[TorchFunction]
    recurrent: dict[TorchFunction, str]
    fused: dict[TorchFunction, str]
    module_classes: tuple[type[nn.Module], ...]
    named: tuple[str, ...]  # those that the user names


def find_nonlinearities(activations: Iterable[str | TorchFunction | type[nn.Module]] = ()) -> Nonlinearities:
    """Collects torch's own nonlinearities and those that the user names.

    Args:
        activations: further module classes or torch functions whose input is a potential, or the
            dotted name of one.

    Raises:
        TypeError: if `activations` is no sequence, or an entry neither a module class nor a function that torch lets a
            caller watch.
        ValueError: if a dotted name cannot be imported.
    """
    if isinstance(activations, str) or not isinstance(activations, Iterable):
        raise TypeError(
            "Expected argument `activations` to be a sequence of module classes, functions of torch, or their dotted"
            f" names, such as ('torch.sin',), but got {activations!r}."
        )
    named, everything = [], []
    for entry in activations:
        found = _import(entry) if isinstance(entry, str) else entry
        if not _is_module_class(found) and not (callable(found) and resolve_name(found) is not None):
            raise TypeError(
                f"Expected argument `activations` to hold subclasses of `torch.nn.Module` and functions of"
                f" torch (such as `torch.sin`), or their dotted names, but got {entry!r}. A function"
                " of your own is watched if you call it from the `forward` of a module class and name the class."
            )
        named.append(repr(entry))
        everything.append(found)
    return _with(tuple(everything), tuple(sorted(named)))


# Not by dotted names, under which another class may be found later.
@lru_cache(maxsize=16)
def _with(activations: tuple[Any, ...], named: tuple[str, ...]) -> Nonlinearities:
    known = _torchs_own()
    hidden = dict(known.hidden)
    for function in activations:
        if not _is_module_class(function):
            hidden.update(_variants(str(getattr(function, "__name__", "")).strip("_")))
            hidden.setdefault(function, _describe(function, function.__name__, None))
    classes = tuple(entry for entry in activations if _is_module_class(entry))
    return replace(known, hidden=hidden, module_classes=classes, named=named)


def _is_module_class(entry: Any) -> bool:
    return isinstance(entry, type) and issubclass(entry, nn.Module)


@cache
def _torchs_own() -> Nonlinearities:
    operators = {getattr(torch.ops.quantized, name): name for name in _FUSED_OPERATORS}
    return Nonlinearities(
        hidden={function: activation for name in _HIDDEN.split() for function, activation in _variants(name)},
        output=_labelled(_OUTPUT),
        direct_losses=all_forms_of(_DIRECT_LOSS),
        probability_losses=all_forms_of(_PROBABILITY_LOSS),
        recurrent=_labelled(_RECURRENT),
        fused={**_labelled(_FUSED), **operators},
        module_classes=(),
        named=(),
    )


def _labelled(names: str) -> dict[TorchFunction, str]:
    return {function: name for name in names.split() for function in forms_of(name)}


def _variants(name: str) -> Iterator[tuple[TorchFunction, Activation]]:
    for namespace in NAMESPACES:
        function = getattr(namespace, name, None)
        if function is not None:
            yield function, _describe(function, name, None)
            overwriting = getattr(namespace, f"{name}_", None)
            if overwriting is not None:
                yield overwriting, _describe(overwriting, name, function)
    label = _LABELS.get(name, name)
    for operator in operators_of(name):
        yield operator, Activation(label, None, None)
    for operator in operators_of(f"{name}_"):
        yield operator, Activation(label, None, getattr(torch.ops.aten, name))


def _describe(function: TorchFunction, label: str, counterpart: TorchFunction | None) -> Activation:
    try:
        parameters = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # C functions have no signature, and no `inplace` argument
        parameters = []
    position = parameters.index("inplace") if "inplace" in parameters else None
    return Activation(_LABELS.get(label, label), position, counterpart)


def _import(dotted: str) -> Any:
    # The longest importable prefix is the module; what follows are attributes of it.
    parts = dotted.split(".")
    for split in range(len(parts) - 1, 0, -1):
        try:
            found: Any = import_module(".".join(parts[:split]))
        except ImportError:
            continue
        try:
            for attribute in parts[split:]:
                found = getattr(found, attribute)
        except AttributeError:
            continue
        return found
    raise ValueError(
        f"Expected argument `activations` to name module classes or functions by their dotted name,"
        f" such as 'torch.sin', but nothing can be imported as {dotted!r}."
    )
