"""The penalty and its gradient written out by hand, as the tests' independent yardstick.

A copy of the network is run with every nonlinearity of PyTorch's Python namespaces replaced by
an explicit one: it copies its input, notes the copy as a potential, applies the function to the
copy out of place and, where the call was in place, writes the result back. So a potential is
what entered the nonlinearity, whatever is done to that memory later, and it lies on the loss's
path exactly if the nonlinearity's result does. Gradients come from ``torch.autograd.grad``.
"""

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args
from unittest.mock import patch

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

Reduction = Literal["mean", "sum", "squared_mean"]
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)
# Where the output layer's potential is found: in the network's output, in what enters the loss's
# softmax in its forward, or among the nonlinearities' inputs already (a sigmoid output).
OutputLayer = Literal["output", "softmax", "activation"]
LossFunction = Callable[[nn.Module, Any], Tensor]

FUNCTIONAL = """
    celu celu_ elu elu_ gelu glu hardshrink hardsigmoid hardswish hardtanh hardtanh_ leaky_relu
    leaky_relu_ logsigmoid mish prelu relu relu6 relu_ rrelu rrelu_ selu selu_ sigmoid silu softplus
    softshrink softsign tanh tanhshrink threshold threshold_
"""
TORCH = """
    celu celu_ hardshrink prelu relu relu_ rrelu rrelu_ selu selu_ sigmoid sigmoid_ tanh tanh_
    threshold threshold_
"""
TENSOR = "hardshrink prelu relu relu_ sigmoid sigmoid_ tanh tanh_"
NONLINEARITIES = {
    F: FUNCTIONAL.split(),
    torch: TORCH.split(),
    torch.special: ["expit"],
    torch.Tensor: TENSOR.split(),
}
SOFTMAX_OF_A_LOSS = {
    F: ["softmax", "log_softmax", "cross_entropy"],
    torch: ["softmax", "log_softmax"],
    torch.Tensor: ["softmax", "log_softmax"],
}


@dataclass(frozen=True)
class Reference:
    """One training step's loss and penalty, and the gradients of each by parameter name."""

    potentials: list[Tensor]  # one a layer, in order of call, the passes along the batch
    live: int  # layers that the loss depends on, and that depend on a trained parameter
    loss: Tensor
    penalty: Tensor
    loss_gradients: dict[str, Tensor]
    penalty_gradients: dict[str, Tensor]
    term_gradients: dict[str, Tensor]  # of a further term

    def gradients(self, lam: float) -> dict[str, Tensor]:
        """The gradient of loss + lam * penalty."""
        return {k: g + lam * self.penalty_gradients[k] for k, g in self.loss_gradients.items()}

    def balanced_lam(self) -> float:
        """The lam at which the penalty's gradient is as long as the loss's."""
        return (norm(self.loss_gradients) / norm(self.penalty_gradients)).item()


def norm(gradients: dict[str, Tensor]) -> Tensor:
    return torch.stack([g.double().square().sum() for g in gradients.values()]).sum().sqrt()


def reference_potentials(network: nn.Module, inputs: Tensor, output_layer: OutputLayer = "output") -> list[Tensor]:
    """The potentials of one call of the network, in order of call, the output layer's last."""
    network = copy.deepcopy(network)
    with _recorded(network, output_layer) as calls:
        network(inputs)
    return calls[0]


def reference_gradients(
    network: nn.Module,
    loss_function: LossFunction,
    batch: Any,
    lam: float,
    reduction: Reduction = "mean",
    output_layer: OutputLayer = "output",
) -> dict[str, Tensor]:
    """The gradient of the loss plus lam times the penalty, by name of the trained parameter."""
    return reference_step(network, loss_function, batch, reduction, output_layer).gradients(lam)


def reference_step(
    network: nn.Module,
    loss_function: LossFunction,
    batch: Any,
    reduction: Reduction = "mean",
    output_layer: OutputLayer = "output",
    term: Callable[[list[Tensor]], Tensor] | None = None,
) -> Reference:
    """A step with the penalty and, where given, a further term of the same potentials."""
    network = copy.deepcopy(network)
    with _recorded(network, output_layer) as calls:
        loss = loss_function(network, batch)

    trained = {k: p for k, p in network.named_parameters() if p.requires_grad}
    layers = list(zip(*calls, strict=True))
    candidates = [z for passes in layers for z in passes if _depends_on(z, trained.values())]
    arriving = torch.autograd.grad(loss, candidates, retain_graph=True, allow_unused=True)
    reached = {id(z) for z, g in zip(candidates, arriving, strict=True) if g is not None}
    live = [[z for z in passes if id(z) in reached] for passes in layers]
    live = [torch.cat(passes) for passes in live if passes]

    penalty = reference_penalty(live, reduction)
    return Reference(
        potentials=[torch.cat(passes) for passes in layers],
        live=len(live),
        loss=loss.detach(),
        penalty=penalty.detach(),
        loss_gradients=_gradients(loss, trained),
        penalty_gradients=_gradients(penalty, trained),
        term_gradients={} if term is None else _gradients(term(live), trained),
    )


def reference_penalty(potentials: list[Tensor], reduction: Reduction = "mean") -> Tensor:
    layers = [z if z.dtype == torch.float64 else z.float() for z in potentials]
    return penalty_of_terms([layer_term([[z]], reduction, _units) for z in layers], reduction)


def layer_term(parts: list[list[Tensor]], reduction: Reduction, units: Callable[[Tensor], int]) -> Tensor:
    """What a layer's potentials count for.

    Args:
        parts: the passes of each part of the layer.
        reduction: the reduction.
        units: gives the number of units of a tensor, the rest of whose dimensions are observations.
    """
    if reduction == "mean":
        return torch.cat([z.flatten() for passes in parts for z in passes]).square().mean()
    if reduction == "squared_mean":
        return torch.cat([torch.cat(passes).mean(0).flatten() for passes in parts]).square().mean()
    squares = [0.5 * sum((z**2).sum() for z in passes) for passes in parts]
    observations = [sum(z.numel() // units(z) for z in passes) for passes in parts]
    return torch.stack([square / count for square, count in zip(squares, observations, strict=True)]).sum()


def penalty_of_terms(terms: list[Tensor], reduction: Reduction) -> Tensor:
    """R of the terms of all layers."""
    return torch.stack(terms).mean() if reduction == "mean" else torch.stack(terms).sum()


def _gradients(value: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(value, list(parameters.values()), retain_graph=True, allow_unused=True)
    return {k: torch.zeros_like(p) if g is None else g for (k, p), g in zip(parameters.items(), found, strict=True)}


def _depends_on(z: Tensor, parameters: Iterable[Tensor]) -> bool:
    """Not the same as having a gradient: that may be the input's."""
    wanted = {id(p) for p in parameters}
    queue = [z.grad_fn]
    seen = {None}
    for node in queue:
        if node in seen:
            continue
        seen.add(node)
        if id(getattr(node, "variable", None)) in wanted:
            return True
        queue.extend(before for before, _ in node.next_functions)
    return False


def _units(z: Tensor) -> int:
    """Filters of a convolution, features of a linear map: the rest of a sample is positions."""
    if z.dim() == 1:
        return 1
    if z.dim() == 2:
        return z.shape[1]
    return z.shape[_unit_axis(z)]


def _unit_axis(z: Tensor) -> int:
    """Found from the operation that made z, the nearest in the graph behind it."""
    queue = [z.grad_fn]
    for node in queue:
        if node is None:
            continue
        name = node.name().removeprefix("Native")
        if name.startswith(("Convolution", "BatchNorm", "GroupNorm")):
            return 1
        if name.startswith(("Addmm", "Mm", "Bmm", "LayerNorm")):
            return -1
        if name.startswith(("Permute", "Transpose")):
            raise AssertionError("the axis of the units has been moved: unclear to the reference")
        queue.extend(before for before, _ in node.next_functions)
    raise AssertionError("no layer found behind the potential")


@contextmanager
def _recorded(network: nn.Module, output_layer: OutputLayer) -> Iterator[list[list[Tensor]]]:
    """Yields a list that gets one list of potentials for each call of the network with gradient.

    The network is changed for good: give a copy. Calls outside of the network's forward, such
    as a sigmoid for an accuracy, are none of its layers.
    """
    calls: list[list[Tensor]] = []
    potentials: list[Tensor] = []
    softmax_inputs: list[Tensor] = []
    explicit = _Explicit()
    nonlinearities = explicit.replacements(NONLINEARITIES, potentials)
    softmaxes = explicit.replacements(SOFTMAX_OF_A_LOSS, softmax_inputs)
    # `nn.TransformerEncoderLayer` and others keep the function itself, out of a patch's reach
    by_original = {id(getattr(owner, name)): new for owner, name, new in nonlinearities}
    for module in network.modules():
        for name, value in list(vars(module).items()):
            if id(value) in by_original:
                setattr(module, name, by_original[id(value)])
    forward = network.forward

    def recorded_forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        potentials.clear()
        softmax_inputs.clear()
        with ExitStack() as stack:
            for owner, name, new in nonlinearities + softmaxes:
                stack.enter_context(patch.object(owner, name, new))
            stack.enter_context(patch.object(torch.utils.checkpoint, "checkpoint", _called))
            output = forward(*args, **kwargs)
        if output_layer == "output":
            potentials.extend(output if isinstance(output, tuple) else [output])
        elif output_layer == "softmax":
            potentials.append(softmax_inputs[-1])
        calls.append(list(potentials))
        return output

    network.forward = recorded_forward
    yield calls


def _called(function: Callable, *args: Any, use_reentrant: bool, **settings: Any) -> Any:
    """Activation checkpointing without the checkpointing."""
    return function(*args)


class _Explicit:
    """Makes the explicit nonlinearities; those that PyTorch calls within one are left alone."""

    def __init__(self) -> None:
        self.inside = False

    def replacements(self, names: dict[Any, list[str]], noted: list[Tensor]) -> list[tuple[Any, str, Callable]]:
        return [(owner, name, self._explicit(owner, name, noted)) for owner in names for name in names[owner]]

    def _explicit(self, owner: Any, name: str, noted: list[Tensor]) -> Callable:
        original = getattr(owner, name)
        plain = getattr(owner, name.removesuffix("_"))
        signature = inspect.signature(original) if inspect.isfunction(original) else None

        def nonlinearity(*args: Any, **kwargs: Any) -> Tensor:
            if self.inside:
                return original(*args, **kwargs)
            in_place = name.endswith("_")
            if signature is not None and "inplace" in signature.parameters:
                arguments = signature.bind(*args, **kwargs).arguments
                in_place = arguments.pop("inplace", False)
                args, kwargs = (), dict(arguments)
            if args:
                x, *args = args
            else:
                x = kwargs.pop("input")
            z = x.clone()
            noted.append(z)
            self.inside = True
            try:
                result = plain(z, *args, **kwargs)
            finally:
                self.inside = False
            return x.copy_(result) if in_place else result

        return nonlinearity
