"""Removing the units of a network that are constant over data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_psp.capture.selection import LayerSelection
from lightning_psp.functional.arguments import check_data, remedy_for_batch
from lightning_psp.pruning.chain import TRANSPOSED, Link, follow_chain
from lightning_psp.pruning.prunable import refuse, select, weights


def remove_constant_units(
    module: nn.Module,
    data: Iterable[Any],
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> nn.Module:
    r"""A smaller network with the same outputs: without the units whose activation is the same for all data.

    A unit is a feature of a linear layer or a filter of a convolution, and it is constant where all that it hands on,
    behind activation, pooling and batch norm, is one number, for every sample (and position). A ReLU that is off for
    all data is the usual case: it gives 0, and its unit goes with all of its weights. Where the number c is another
    one, the unit goes as well, and the bias of the next layer takes over what it contributed,
    :math:`b_i \leftarrow b_i + \sum_k w_{ik} c_k`. Such a unit stays in front of a convolution with zeros as padding,
    or a transposed one, for at the borders it contributes something else. A layer keeps at least one unit, and the last
    layer keeps all.

    The network is a chain of linear and convolution layers, with activations, pooling, dropout, batch norm and
    flattening between them, as modules or functions, in whatever `forward` calls them. What it computes on `data` is
    compared before it is returned. For inputs outside the data it is another function.

    Args:
        module: the network, which stays as it is. It is looked at in ``eval()``.
        data: batches, tuples or lists whose first item the network is called with. They are moved to its device, and
            gone through twice.
        include: glob patterns on names of linear and convolution layers: those that may lose units. The last
            layer loses none.
        exclude: glob patterns on names of linear and convolution layers.

    Returns:
        A copy of the network, in the modes it was in, whose layers have fewer units.

    Raises:
        TypeError: if `module` is no module, a pattern is no string, `data` ends after one pass, or a batch is neither a
            tuple nor a list.
        ValueError: if there is no batch, a pattern matches no layer, the last layer alone is chosen of several, or a
            parameter is on the meta device.
        NotImplementedError: if the network is no such chain, or its code relies on the sizes of its layers; the message
            says where and why.

    Example:
        >>> network = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> _ = network[0].weight.data.copy_(torch.tensor([[1.0], [-1.0], [0.0]]))
        >>> _ = network[0].bias.data.copy_(torch.tensor([0.0, 0.0, 5.0]))
        >>> data = [(torch.tensor([[1.0], [2.0]]),)]  # gives 1 and 2, 0 and 0, 5 and 5
        >>> smaller = remove_constant_units(network, data)
        >>> smaller[0], smaller[2]
        (Linear(in_features=1, out_features=1, bias=True), Linear(in_features=1, out_features=2, bias=True))
        >>> torch.allclose(smaller(data[0][0]), network(data[0][0]))
        True
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"Expected argument `module` to be a `torch.nn.Module` but got {type(module).__name__}.")
    LayerSelection(include, exclude)  # checks their types
    check_data(data)
    for weight in weights(module):
        if weight.parameter.is_meta:
            refuse(weight)
    links, last = follow_chain(module)
    original = copy.deepcopy(module).eval()
    names = [*(link.layer for link in links), last]
    chosen = select({name: (name,) for name in names}, include, exclude, kind="layer")
    if links and chosen == [last]:
        raise ValueError(
            f"Expected arguments `include` and `exclude` to choose one of {', '.join(names[:-1])} but got {last} alone,"
            " the last layer, which keeps all of its units."
        )
    with torch.no_grad():
        ranges = _ranges_of_inputs(original, names[1:] or names, data)
        smaller = copy.deepcopy(module)
        for link in links:
            if link.layer in chosen:
                _remove(smaller, link, *ranges[link.next_layer])
        modes = [(part, part.training) for part in smaller.modules()]
        try:
            _compare(original, smaller.eval(), last, data)
        finally:
            for part, is_training in modes:
                part.training = is_training
    return smaller


def _ranges_of_inputs(module: nn.Module, paths: Sequence[str], data: Iterable[Any]) -> dict[str, tuple[Tensor, Tensor]]:
    """The smallest and the largest number that layers are given, for each channel or feature of their inputs."""
    ranges: dict[str, tuple[Tensor, Tensor]] = {}

    def note(path: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            unit_dim = -1 if isinstance(layer, nn.Linear) else 1
            rows = (*arguments, *named.values())[0].movedim(unit_dim, 0).flatten(1)
            if rows.shape[1] > 0:
                low, high = rows.aminmax(dim=1)
                before = ranges.get(path, (low, high))
                # a NaN stays one, and is not equal to itself
                ranges[path] = torch.minimum(before[0], low), torch.maximum(before[1], high)

        return hook

    handles = [module.get_submodule(path).register_forward_pre_hook(note(path), with_kwargs=True) for path in paths]
    try:
        for value in _inputs(module, data):
            module(value)
    finally:
        for handle in handles:
            handle.remove()
    if not ranges:
        raise ValueError("Expected argument `data` to give at least one sample but got none.")
    return ranges


def _remove(module: nn.Module, link: Link, low: Tensor, high: Tensor) -> None:
    """Takes constant units from a layer, and what belongs to them from those behind it."""
    layer, following = module.get_submodule(link.layer), module.get_submodule(link.next_layer)
    out_dim = 1 if isinstance(layer, TRANSPOSED) else 0
    units = _weight(layer).shape[out_dim]
    positions = len(low) // units
    is_constant = low == high
    if not _takes_constants(following):
        is_constant &= low == 0
    goes = is_constant.view(units, positions).all(1)
    if goes.all():
        goes[0] = False
    if not goes.any():
        return
    inputs_gone = goes.repeat_interleave(positions)
    _add_to_bias(following, inputs_gone, low)
    _keep(layer, out_dim, ~goes)
    for path in link.between:
        _keep_entries(module.get_submodule(path), ~goes, ~inputs_gone)
    _keep(following, 0 if isinstance(following, TRANSPOSED) else 1, ~inputs_gone, has_bias=False)


def _weight(layer: nn.Module) -> nn.Parameter:
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    return weight


def _takes_constants(layer: nn.Module) -> bool:
    """Whether what a constant input contributes to a layer's outputs is constant, too, at the borders as well."""
    if isinstance(layer, nn.Linear):
        return True
    has_zeros = any(layer.padding) if isinstance(layer.padding, tuple) else layer.padding != "valid"
    return not isinstance(layer, TRANSPOSED) and (not has_zeros or layer.padding_mode != "zeros")


def _add_to_bias(layer: nn.Module, gone: Tensor, constants: Tensor) -> None:
    """Gives a layer's bias what constant inputs contribute."""
    if not constants[gone].any():
        return
    weight = _weight(layer)
    wide = weight.double() if weight.dtype == torch.float32 and weight.device.type != "mps" else weight
    contribution = wide[:, gone].flatten(2).sum(2) if weight.dim() > 2 else wide[:, gone]
    added = (contribution @ constants[gone].to(wide.dtype)).to(weight.dtype)
    bias = layer.bias
    if isinstance(bias, nn.Parameter):
        bias.add_(added)
    else:
        layer.bias = nn.Parameter(added, requires_grad=weight.requires_grad)


def _keep(layer: nn.Module, dim: int, stays: Tensor, has_bias: bool = True) -> None:
    """Keeps some of the units (`has_bias`) or inputs of a layer."""
    indices = stays.nonzero().flatten()
    _replace(layer, "weight", _weight(layer).index_select(dim, indices))
    if has_bias and layer.bias is not None:
        _replace(layer, "bias", layer.bias[indices])  # type: ignore[index]
    kind = "features" if isinstance(layer, nn.Linear) else "channels"
    setattr(layer, f"{'out' if has_bias else 'in'}_{kind}", len(indices))


def _keep_entries(part: nn.Module, stays: Tensor, inputs_stay: Tensor) -> None:
    """Keeps some of the entries of what has one for each channel or flattened feature; a PReLU may have one for all."""
    size = "num_parameters" if isinstance(part, nn.PReLU) else "num_features"
    stays = stays if getattr(part, size) == len(stays) else inputs_stay
    indices = stays.nonzero().flatten()
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = getattr(part, name, None)
        if isinstance(value, Tensor) and len(value) == len(stays):
            _replace(part, name, value[indices])
    if getattr(part, size) == len(stays):
        setattr(part, size, len(indices))


def _replace(part: nn.Module, name: str, value: Tensor) -> None:
    before = getattr(part, name)
    is_parameter = isinstance(before, nn.Parameter)
    setattr(part, name, nn.Parameter(value, requires_grad=before.requires_grad) if is_parameter else value)


def _compare(original: nn.Module, smaller: nn.Module, last: str, data: Iterable[Any]) -> None:
    """Raises an error where two networks' last layers give other outputs."""
    outputs: list[Tensor] = []
    handles = [
        network.get_submodule(last).register_forward_hook(lambda layer, arguments, output: outputs.append(output))
        for network in (original, smaller)
    ]
    reason = "its code relies on the sizes of its layers"
    try:
        for value in _inputs(original, data):
            outputs.clear()
            original(value)
            try:
                smaller(value)
            except (RuntimeError, ValueError) as error:
                raise _failure(original, f"{reason} ({error})") from error
            first, second = outputs
            bound = min(0.05, 2000 * torch.finfo(first.dtype).eps) * float(first.nan_to_num(0, 0, 0).abs().amax())
            if first.shape != second.shape or not torch.allclose(first, second, 0, bound, equal_nan=True):
                raise _failure(original, f"without the units it computes something else, so that {reason}")
    finally:
        for handle in handles:
            handle.remove()


def _failure(module: nn.Module, reason: str) -> NotImplementedError:
    return NotImplementedError(
        f"The constant units of {type(module).__name__} cannot be removed: {reason}. Write sizes as -1, and leave"
        " layers out with the argument `exclude` whose number of units is used elsewhere."
    )


def _inputs(module: nn.Module, data: Iterable[Any]) -> Iterable[Tensor]:
    device = next((parameter.device for parameter in module.parameters()), None)
    for batch in data:
        if not isinstance(batch, (tuple, list)) or not batch or not isinstance(batch[0], Tensor):
            raise TypeError(
                "Expected a batch of argument `data` to be a tuple or list whose first item is the network's input,"
                f" such as (images, labels), but got {type(batch).__name__}.{remedy_for_batch(batch)}"
            )
        yield batch[0].to(device)
