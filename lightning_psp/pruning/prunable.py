"""Which parameters of a network can be pruned, their names, and what their weights are worth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torchmetrics import Metric

from lightning_psp.capture.selection import LayerSelection, matches

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PRUNED_KINDS = (nn.Linear, nn.Bilinear, *_CONVOLUTIONS)


@dataclass(frozen=True, eq=False)
class Weight:
    """A parameter under all of its names, and what has to be known to set some of its weights to 0.

    Args:
        names: its names, that of ``named_parameters()`` first.
        parameter: the parameter; with weight norm the direction v.
        scale: with weight norm the length g of the direction: the weight is g·v/‖v‖.
        scale_names: the names of that.
        is_prunable: whether it is the weight of a linear or convolution layer.
        problem: why its weights cannot be set to 0, and what to do; empty where they can.
    """

    names: tuple[str, ...]
    parameter: nn.Parameter
    scale: nn.Parameter | None = None
    scale_names: tuple[str, ...] = ()
    is_prunable: bool = False
    problem: str = ""

    @torch.no_grad()
    def value(self) -> Tensor:
        """The weight that the layer computes with, without a graph."""
        direction = self.parameter.detach()
        if self.scale is None:
            return direction
        return direction * (self.scale / norm_like(direction, self.scale))


def norm_like(direction: Tensor, scale: Tensor) -> Tensor:
    """The Euclidean norms of the parts of a direction that share an element of its scale."""
    wide = direction.to(torch.promote_types(direction.dtype, torch.float32))  # squares of half precision overflow
    return wide.abs().square().sum_to_size(scale.shape).sqrt()


def prunable_parameters(
    module: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> dict[str, nn.Parameter]:
    """The parameters that can be pruned: weights of linear and (transposed) convolution layers.

    Networks inside metrics, such as that of a Fréchet inception distance, are no part of them.

    A parameter that several layers share is one entry, under its name in ``module.named_parameters()``; a pattern may
    name it by any of its names. Names in compiled networks are matched with and without ``_orig_mod``. Of a layer with
    weight norm the entry is the direction, ``weight_v`` or ``parametrizations.weight.original1``, whose zeros are those
    of the weight.

    Args:
        module: the network.
        include: glob patterns on parameter names.
        exclude: glob patterns on parameter names.

    Returns:
        Name to parameter, in the order of ``module.named_parameters()``.

    Raises:
        TypeError: if a pattern is no string.
        ValueError: if a pattern matches no name, nothing is left, or a parameter cannot be pruned: it is not
            initialised yet, is on the meta device, has another parametrisation than weight norm, or holds no floating
            point numbers.
        NotImplementedError: if a parameter is sharded over processes.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
        >>> list(prunable_parameters(network)), list(prunable_parameters(network, exclude=["3.*"]))
        (['0.weight', '3.weight'], ['0.weight'])
    """
    return {name: weight.parameter for name, weight in prunable_weights(module, include, exclude).items()}


def prunable_weights(
    module: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> dict[str, Weight]:
    """As :func:`prunable_parameters`, with what has to be known to prune them."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"Expected argument `module` to be a `torch.nn.Module` but got {type(module).__name__}.")
    found = {weight.names[0]: weight for weight in weights(module) if weight.is_prunable}
    if not found:
        raise ValueError(f"{type(module).__name__} has no linear or convolution layer whose weights could be pruned.")
    names = select({name: _spellings(weight.names) for name, weight in found.items()}, include, exclude)
    for name in names:
        refuse(found[name])
    return {name: found[name] for name in names}


def select(
    names: dict[str, Sequence[str]],
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    kind: str = "parameter",
) -> list[str]:
    """The parameters, or layers, that patterns choose, each by any of its names.

    Args:
        names: name of each to all of its names.
        include: glob patterns.
        exclude: glob patterns.
        kind: what errors call them.

    Raises:
        TypeError: if a pattern is no string.
        ValueError: if a pattern matches no name, or nothing is left.
    """
    selection = LayerSelection(include, exclude)
    listed = f"The {kind}s that can be pruned are: {', '.join(names)}."
    for argument, patterns in (("include", selection.include), ("exclude", selection.exclude)):
        for pattern in patterns:
            if not any(fnmatchcase(each, pattern) for every in names.values() for each in every):
                raise ValueError(f"Pattern {pattern!r} of argument `{argument}` matches no {kind}. {listed}")

    def is_matched(every: Sequence[str], patterns: Sequence[str]) -> bool:
        return any(matches(each, tuple(patterns)) for each in every)

    chosen = [
        name
        for name, every in names.items()
        if is_matched(every, selection.include) and not is_matched(every, selection.exclude)
    ]
    if not chosen:
        raise ValueError(
            f"No {kind} is left to prune by include={selection.include}, exclude={selection.exclude}. {listed}"
        )
    return chosen


def refuse(weight: Weight) -> None:
    """Raises an error where the weights of a parameter cannot be set to 0."""
    if weight.problem:
        error = NotImplementedError if is_sharded(weight.parameter) else ValueError
        raise error(f"Parameter {weight.names[0]!r} cannot be pruned: {weight.problem}")


def weights(module: nn.Module) -> Iterator[Weight]:
    """All parameters of a network, each once."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    roles = _roles(module)
    for parameter in module.parameters():
        scale, is_prunable, problem = roles.get(id(parameter), (None, False, ""))
        scale_names = () if scale is None else tuple(names[id(scale)])
        problem = problem or _problem(parameter)
        yield Weight(tuple(names[id(parameter)]), parameter, scale, scale_names, is_prunable, problem)


def weights_by_name(module: nn.Module) -> dict[str, Weight]:
    """All parameters of a network, by each of their names, with and without the ``_orig_mod`` of compiled modules."""
    return {name: weight for weight in weights(module) for name in _spellings(weight.names)}


_Role = tuple["nn.Parameter | None", bool, str]


def _roles(module: nn.Module) -> dict[int, _Role]:
    """What linear and convolution layers use parameters for: scale, whether they are prunable, and what hinders it."""
    roles: dict[int, _Role] = {}
    for part in own_parts(module):
        if not isinstance(part, _PRUNED_KINDS):
            continue
        own = dict(part.named_parameters(recurse=False, remove_duplicate=False))
        if "weight" in own:
            roles.setdefault(id(own["weight"]), (None, True, ""))
        elif parametrize.is_parametrized(part, "weight"):
            roles.update(_parametrised_roles(part))
        elif "weight_g" in own and "weight_v" in own:
            roles[id(own["weight_v"])] = (own["weight_g"], True, "")
        elif "weight_orig" in own:
            remedy = (
                "its layer's weight is made from it by a hook. Take that away"
                " (`torch.nn.utils.prune.remove(layer, 'weight')` or"
                " `torch.nn.utils.remove_spectral_norm(layer)`), or name it in `exclude`."
            )
            roles[id(own["weight_orig"])] = (None, True, remedy)
    return roles


def own_parts(module: nn.Module) -> Iterator[nn.Module]:
    """The modules of a network, each once, without those of metrics, which may judge images by a network of theirs."""
    found, waiting = {id(module)}, [module]
    for part in waiting:
        yield part
        children = [child for child in part.children() if id(child) not in found and not isinstance(child, Metric)]
        found.update(map(id, children))
        waiting.extend(children)


def _parametrised_roles(part: nn.Module) -> dict[int, _Role]:
    made: Any = part.get_submodule("parametrizations.weight")
    steps = [type(step) for step in made]
    if [(step.__module__, step.__name__) for step in steps] == [("torch.nn.utils.parametrizations", "_WeightNorm")]:
        return {id(made.original1): (made.original0, True, "")}
    remedy = (
        f"its layer's weight is made from it by {', '.join(step.__name__ for step in steps)}. Take that away"
        " (`torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')`), or name it in `exclude`."
    )
    originals = [p for name, p in made.named_parameters(recurse=False) if name.startswith("original")]
    return {id(original): (None, True, remedy) for original in originals}


def _problem(parameter: Tensor) -> str:
    if is_lazy(parameter):
        return "it is not initialised yet. Call the network once before."
    if is_sharded(parameter):
        return (
            "each process holds a part of it. Use a strategy that keeps whole parameters in each process, such as"
            " DDPStrategy(), or prune the whole model before it is sharded."
        )
    if parameter.is_meta:
        return "it is on the meta device, without numbers. Give the module memory (`to_empty`) and weights before."
    if not parameter.is_floating_point() and not parameter.is_complex():
        return f"it holds {parameter.dtype}, no floating point numbers. Prune the network before it is quantised."
    return ""


def is_sharded(parameter: Tensor) -> bool:
    """Whether each process holds a part of a parameter."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(parameter, DTensor)


def _spellings(names: Sequence[str]) -> tuple[str, ...]:
    """Names as they are, and as they were before modules were compiled."""
    plain = (".".join(part for part in name.split(".") if part != "_orig_mod") for name in names)
    return tuple(dict.fromkeys((*names, *plain)))
