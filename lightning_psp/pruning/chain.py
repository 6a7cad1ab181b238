"""Networks that are a chain of linear and convolution layers: which follows which, and what lies between."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.utils import parametrize

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)
# What has an entry for each channel, which goes with the channel.
CHANNELWISE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.PReLU)

# What computes each channel from itself alone.
_ACTIVATIONS = "relu relu6 leaky_relu elu selu celu gelu silu sigmoid tanh softplus mish hardtanh hardswish".split()
_ACTIVATIONS += "hardsigmoid softsign logsigmoid tanhshrink hardshrink softshrink threshold".split()
_POOLING = [f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for n in (1, 2, 3)]
_DROPOUT = "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout".split()
_NAMES = (*_ACTIVATIONS, *_POOLING, *_DROPOUT)
_MODULES = tuple(
    kind
    for name in dir(nn)
    if isinstance(kind := getattr(nn, name), type)
    if name.lower() in {each.replace("_", "") for each in _NAMES} or kind is nn.Identity
)
_FUNCTIONS = {
    getattr(home, name + end)
    for home in (functional, torch)
    for name in _NAMES
    for end in ("", "_")
    if hasattr(home, name + end)
}
_FLATTENING = ("flatten", "view", "reshape")


@dataclass(frozen=True)
class Link:
    """A layer and the one that it feeds.

    Args:
        layer: path of the layer.
        between: paths of the modules between them that have an entry for each channel.
        is_flattened: whether the positions of a channel become features of their own.
        next_layer: path of the other layer.
    """

    layer: str
    between: tuple[str, ...]
    is_flattened: bool
    next_layer: str


def follow_chain(module: nn.Module) -> tuple[list[Link], str]:
    """Finds the chain of a network's linear and convolution layers.

    Args:
        module: the network; what comes before its first layer and behind its last one is its own affair.

    Returns:
        A link for each layer but the last, in order of call, and the path of the last.

    Raises:
        NotImplementedError: if the network is no such chain; the message says where and why.
    """
    try:
        graph = fx.Tracer().trace(module)
    except Exception as error:  # whatever the user's code raises when it is given no tensor
        raise _refusal(module, f"its `forward` cannot be followed by torch.fx ({error})") from error
    layers = [node for node in graph.nodes if isinstance(_module_of(module, node), LAYERS)]
    if not layers:
        raise _refusal(module, "it calls no linear or convolution layer")
    _check_calls(module, graph)
    links, node = [], layers[0]
    for following in layers[1:]:
        layer, between, is_flattened, is_pooled = node, [], False, False
        node = _only_user(module, node)
        while node is not following:
            if _is_flattening(node, _module_of(module, node)):
                is_flattened = True
            elif isinstance(_module_of(module, node), CHANNELWISE):
                between.append(str(node.target))
            elif not _keeps_channels(module, node):
                raise _refusal(module, f"{_name_of(module, node)} stands between its layers")
            is_pooled |= "pool" in _name_of(module, node).lower()
            node = _only_user(module, node)
        link = Link(str(layer.target), tuple(between), is_flattened, str(following.target))
        _check_link(module, link, is_pooled)
        links.append(link)
    return links, str(layers[-1].target)


def _module_of(module: nn.Module, node: fx.Node) -> nn.Module | None:
    return module.get_submodule(str(node.target)) if node.op == "call_module" else None


def _keeps_channels(module: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(_module_of(module, node), _MODULES)
    if node.op == "call_method":
        return str(node.target).rstrip("_") in (*_ACTIVATIONS, "contiguous")
    return node.target in _FUNCTIONS


def _is_flattening(node: fx.Node, called: nn.Module | None) -> bool:
    """Whether all dimensions but the batch become one."""
    if isinstance(called, nn.Flatten):
        return (called.start_dim, called.end_dim) == (1, -1)
    name = getattr(node.target, "__name__", node.target)
    if node.op not in ("call_method", "call_function") or name not in _FLATTENING:
        return False
    if name == "flatten":
        bounds = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | node.kwargs
        return (bounds.get("start_dim"), bounds.get("end_dim", -1)) == (1, -1)
    sizes: Any = node.args[1:]
    sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    return len(sizes) == 2 and (isinstance(sizes[0], fx.Node) or -1 in sizes)


def _only_user(module: nn.Module, node: fx.Node) -> fx.Node:
    users = [user for user in node.users if not _is_size(user)]
    name = _name_of(module, node)
    if len(users) != 1:
        raise _refusal(module, f"the output of {name} goes to {len(users)} places, as around a residual connection")
    (user,) = users
    if user.op == "output":
        raise _refusal(module, f"the output of {name} leaves the network before its last layer")
    if any(other is not node and not _is_size(other) for other in user.all_input_nodes):
        raise _refusal(module, f"{_name_of(module, user)} puts the output of {name} together with another")
    return user


def _is_size(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target == "size"
    if node.target is operator.getitem:
        return _is_size(node.all_input_nodes[0])
    return node.target is getattr and "shape" in node.args


def _check_calls(module: nn.Module, graph: fx.Graph) -> None:
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    users = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))
    for path, count in calls.items():
        called = module.get_submodule(path)
        if isinstance(called, (nn.RNNBase, nn.RNNCellBase)):
            raise _refusal(module, f"{path} is recurrent")
        if not isinstance(called, (*LAYERS, *CHANNELWISE)):
            continue
        if count > 1 or any(users[id(parameter)] > 1 for parameter in called.parameters()):
            raise _refusal(module, f"{path} is used, or shares its weights, in several places")
        own = dict(called.named_parameters(recurse=False))
        if parametrize.is_parametrized(called) or "weight_v" in own or "weight_orig" in own:
            raise _refusal(module, f"the weights of {path} are made from others, as by weight norm: remove that before")


def _check_link(module: nn.Module, link: Link, is_pooled: bool) -> None:
    layer, following = module.get_submodule(link.layer), module.get_submodule(link.next_layer)
    names = f"{link.layer} and {link.next_layer}"
    for path, each in ((link.layer, layer), (link.next_layer, following)):
        if getattr(each, "groups", 1) > 1:
            raise _refusal(module, f"{path} is a convolution of {each.groups} groups")
    if isinstance(layer, nn.Linear):
        fits = isinstance(following, nn.Linear) and not link.is_flattened and not is_pooled
    else:
        fits = isinstance(following, nn.Linear) == link.is_flattened
    if not fits:
        raise _refusal(module, f"between {names} the channels do not stay where they are")


def _name_of(module: nn.Module, node: fx.Node) -> str:
    called = _module_of(module, node)
    if called is not None:
        return f"{node.target} ({type(called).__name__})"
    return str(getattr(node.target, "__name__", node.target))


def _refusal(module: nn.Module, reason: Any) -> NotImplementedError:
    return NotImplementedError(
        "Units can be removed from a chain of linear and convolution layers with activations, pooling, dropout, batch"
        f" norm and flattening between them. {type(module).__name__} is none: {reason}."
    )
